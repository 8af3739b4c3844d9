"""QK-norm, RoPE and the KV store: the definitions, and that the one launch equals all three."""

import pytest
import torch

from headrace.kernels.rotate import apply_rope, rotate_store, rotate_store_ref, store_kv
from tests.kernels.closeness import assert_close

CASES = [  # tokens, heads, kv heads, head size, rotary size
    (1, 4, 2, 16, 16),
    (5, 3, 1, 10, 6),
    (19, 16, 2, 8, 8),
    (18, 9, 3, 12, None),
]


def table_of(positions: int, rotary: int) -> torch.Tensor:
    angle = torch.arange(positions)[:, None] / 100 ** (torch.arange(rotary // 2) / (rotary // 2))
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def step(tokens: int, heads: int, kv_heads: int, size: int, rotary: int | None, dtype: torch.dtype) -> dict:
    """Arguments of rotate_store, on the CPU: q, k, v are views of one fused projection."""
    fused = torch.randn(tokens, (heads + 2 * kv_heads) * size).to(dtype).view(tokens, -1, size)
    return {
        "q_THD": fused[:, :heads],
        "k_TKD": fused[:, heads : heads + kv_heads],
        "v_TKD": fused[:, heads + kv_heads :],
        "positions_T": torch.randint(0, 50, (tokens,)),
        "table_PR": None if rotary is None else table_of(50, rotary),
        "q_weight_D": None,
        "k_weight_D": None,
        "eps": 1e-6,
        "offset": 0.0,
        "k_cache": torch.zeros(8, 4, kv_heads, size, dtype=dtype),
        "v_cache": torch.zeros(8, 4, kv_heads, size, dtype=dtype),
        "slots_T": torch.randperm(28)[:tokens] + 4,
    }


def moved(arguments: dict, device: torch.device) -> dict:
    """A copy on the device; q, k and v stay views of one tensor."""
    q, k, v = (arguments[n] for n in ("q_THD", "k_TKD", "v_TKD"))
    fused = torch.cat([q, k, v], dim=1).to(device)
    out = {n: x.clone().to(device) if isinstance(x, torch.Tensor) else x for n, x in arguments.items()}
    h, kv = q.shape[1], k.shape[1]
    return out | {"q_THD": fused[:, :h], "k_TKD": fused[:, h : h + kv], "v_TKD": fused[:, h + kv :]}


def test_rope_turns_pairs_and_keeps_the_rest():
    x = torch.randn(2, 1, 6)
    table = table_of(10, 4)
    out = apply_rope(x, torch.tensor([0, 7]), table)
    assert torch.equal(out[0], x[0])
    angle = torch.tensor(7.0)
    assert_close(out[1, 0, 0], x[1, 0, 0] * angle.cos() - x[1, 0, 2] * angle.sin())
    assert_close(out[1, 0, 2], x[1, 0, 2] * angle.cos() + x[1, 0, 0] * angle.sin())
    assert torch.equal(out[..., 4:], x[..., 4:])


def test_store_writes_only_its_slots():
    k_cache, v_cache = torch.zeros(3, 2, 1, 4), torch.zeros(3, 2, 1, 4)
    store_kv(torch.ones(2, 1, 4), 2 * torch.ones(2, 1, 4), k_cache, v_cache, torch.tensor([5, 2]))
    assert k_cache.view(6, 4).sum(1).tolist() == [0, 0, 4, 0, 0, 4]
    assert v_cache.view(6, 4).sum(1).tolist() == [0, 0, 8, 0, 0, 8]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [False, True])
def test_kernel_equals_definition(device, case, dtype, norm):
    from headrace.kernels.gpu.rotate import rotate_store as kernel

    wanted = step(*case, dtype)
    if norm:
        q_weight, k_weight = torch.randn(2, case[3]).to(dtype)
        wanted |= {"q_weight_D": q_weight, "k_weight_D": k_weight, "offset": 1.0}
    got = moved(wanted, device)
    q_wanted = rotate_store_ref(**wanted)
    q = kernel(*got.values())
    assert q.is_contiguous()
    assert_close(q.cpu(), q_wanted)
    assert_close(got["k_cache"].cpu(), wanted["k_cache"])
    assert torch.equal(got["v_cache"].cpu(), wanted["v_cache"])
    untouched = torch.ones(32, dtype=torch.bool)
    untouched[wanted["slots_T"]] = False
    assert not got["k_cache"].cpu().flatten(0, 1)[untouched].any()


def test_one_sided_norm_weights_are_ignored_as_the_definition_does():
    arguments = step(*CASES[0], torch.float32)
    plain = rotate_store(**arguments)
    assert torch.equal(plain, rotate_store(**(arguments | {"q_weight_D": torch.randn(16)})))


def test_kernel_follows_the_strides_of_an_interleaved_cache(device):
    from headrace.kernels.gpu.rotate import rotate_store as kernel

    wanted = step(5, 4, 2, 8, 8, torch.float32)
    got = moved(wanted, device)
    both = torch.zeros(8, 2, 4, 2, 8, device=device)
    kernel(*(got | {"k_cache": both[:, 0], "v_cache": both[:, 1]}).values())
    rotate_store_ref(**wanted)
    assert_close(both[:, 0].cpu(), wanted["k_cache"])
    assert torch.equal(both[:, 1].cpu(), wanted["v_cache"])
