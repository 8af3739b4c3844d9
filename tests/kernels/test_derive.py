"""What a decoding step derives from its rows."""

from random import Random

import pytest
import torch

from headrace.kernels.derive import Kept, Rows, Tokens, derive, derive_ref
from headrace.kernels.sample import Knobs

BLOCK = 4


def state(rows: int, nobodies: int, groups: int, blocks: int) -> tuple[Rows, Kept]:
    """`rows` of twice as many slots, some with a new block, then rows of nobody."""
    random, slots = Random(rows), 2 * rows + 1
    table = torch.randint(1, 1 << 20, (groups, slots, blocks), dtype=torch.int32)
    table[:, -1] = 0
    context = [
        random.choice((1, BLOCK, blocks * BLOCK, random.randint(1, blocks * BLOCK))) for _ in range(rows)
    ]
    at = torch.tensor([(n - 1) // BLOCK for n in context] + [0] * nobodies, dtype=torch.int32)
    to = torch.randint(1 << 20, 1 << 21, (groups, rows + nobodies + 3), dtype=torch.int32)
    to[torch.rand(to.shape) < 0.5] = -1
    to[:, rows:] = -1
    knobs = Knobs(torch.rand(3, slots), torch.randint(-(2**62), 2**62, (2, slots)))
    return (
        Rows(
            torch.tensor(random.sample(range(2 * rows), rows) + [2 * rows] * nobodies),
            torch.tensor(context + [0] * nobodies, dtype=torch.int32), at, to[:, : rows + nobodies],
        ),
        Kept(torch.randint(1 << 40, (slots,)), table, knobs),
    )  # fmt: skip


def room(rows: Rows, kept: Kept, device: torch.device | str = "cpu") -> Tokens:
    """Parts of larger buffers, with what nobody has written."""
    count, (groups, _, blocks) = len(rows.slots_R), kept.table_GNB.shape

    def of(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.full(shape, -9, dtype=dtype, device=device)

    knobs = Knobs(of(3, count + 2, dtype=torch.float32)[:, :count], of(2, count + 2)[:, :count])
    tables = of(groups, count + 2, blocks, dtype=torch.int32)[:, :count]
    return Tokens(of(count), of(count), of(count), of(groups, count + 5)[:, :count], tables, knobs)


def test_a_new_block_is_where_the_token_goes():
    kept = Kept(
        torch.tensor([5, 6, 0]), torch.tensor([[[1, 0], [2, 0], [0, 0]]], dtype=torch.int32),
        Knobs(torch.tensor([[1.0, 2.0, 0.0]] * 3), torch.tensor([[3, 4, 0]] * 2)),
    )  # fmt: skip
    context, at, to = (
        torch.tensor(n, dtype=torch.int32) for n in ([BLOCK + 1, 2, 0], [1, 0, 0], [[7, -1, -1]])
    )
    rows = Rows(torch.tensor([1, 0, 2]), context, at, to)
    out = room(rows, kept)
    derive(rows, kept, BLOCK, out)
    assert out.ids_R.tolist() == [6, 5, 0]
    assert out.positions_R.tolist() == [BLOCK, 1, 0]
    assert out.ends_R.tolist() == [BLOCK + 1, 2, 0]
    assert out.slots_GR.tolist() == [[7 * BLOCK, BLOCK + 1, 0]]
    assert out.tables_GRB.tolist() == [[[2, 7], [1, 0], [0, 0]]]
    assert kept.table_GNB.tolist() == [[[1, 0], [2, 7], [0, 0]]]
    assert out.knobs.floats_PN[0].tolist() == [2.0, 1.0, 0.0]
    assert out.knobs.ints_PN[1].tolist() == [4, 3, 0]


@pytest.mark.parametrize(
    ("rows", "nobodies", "groups", "blocks"), [(1, 0, 1, 3), (5, 3, 2, 37), (2, 1, 1, 5000)]
)
def test_kernel_equals_definition(device: torch.device, rows: int, nobodies: int, groups: int, blocks: int):
    from headrace.kernels.gpu import derive as gpu

    step, kept = state(rows, nobodies, groups, blocks)
    other = Kept(
        kept.last_N.to(device), kept.table_GNB.clone().to(device), Knobs(*(t.to(device) for t in kept.knobs))
    )
    wanted, found = room(step, kept), room(step, kept, device)
    derive_ref(step, kept, BLOCK, wanted)
    gpu.derive(Rows(*(t.to(device) for t in step)), other, BLOCK, found)
    assert torch.equal(other.table_GNB.cpu(), kept.table_GNB)
    seen = torch.arange(blocks) * BLOCK < step.context_R[:, None]
    assert torch.equal(found.tables_GRB.cpu()[:, seen], wanted.tables_GRB[:, seen])
    for a, b in zip((*found[:4], *found.knobs), (*wanted[:4], *wanted.knobs), strict=True):
        assert torch.equal(a.cpu(), b)
