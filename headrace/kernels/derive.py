"""All that is per token of a decoding step, from what is per row and what the device keeps over steps.

R rows, one token each; G layer groups; N slots, the last of them nobody's; B blocks per sequence. Rows that pad a
step are nobody's and have no keys.
"""

from typing import NamedTuple

from torch import Tensor

from headrace.kernels.launch import on_gpu
from headrace.kernels.sample import Knobs


class Rows(NamedTuple):
    """What the host says of each row.

    slots     int64 [R], no two alike but nobody's        context   int32 [R] keys after this step, 0: none
    patch_to  int32 [G, R] a new block, -1: none          patch_at  int32 [R] its place in the row's table
    """

    slots_R: Tensor
    context_R: Tensor
    patch_at_R: Tensor
    patch_to_GR: Tensor


class Kept(NamedTuple):
    """What the device knows of each slot: newest token int64, block ids int32, and how it draws."""

    last_N: Tensor
    table_GNB: Tensor
    knobs: Knobs


class Tokens(NamedTuple):
    """What is derived: int64 ids, positions, positions of the tokens to be drawn, places in the cache; int32 tables.

    Entries of tables beyond a row's keys may be anything: nobody reads them.
    """

    ids_R: Tensor
    positions_R: Tensor
    ends_R: Tensor
    slots_GR: Tensor
    tables_GRB: Tensor
    knobs: Knobs


def derive_ref(rows: Rows, kept: Kept, block_size: int, out: Tokens) -> None:
    """The definition of derive."""
    new_GR = rows.patch_to_GR >= 0
    group, row = new_GR.nonzero(as_tuple=True)
    kept.table_GNB[group, rows.slots_R[row], rows.patch_at_R[row].long()] = rows.patch_to_GR[new_GR]
    out.ids_R.copy_(kept.last_N[rows.slots_R])
    out.ends_R.copy_(rows.context_R)
    out.positions_R.copy_(out.ends_R - 1).clamp_(min=0)
    out.tables_GRB.copy_(kept.table_GNB[:, rows.slots_R])
    at_GR1 = (out.positions_R // block_size).expand(len(out.tables_GRB), -1).unsqueeze(2)
    block_GR = out.tables_GRB.gather(2, at_GR1).squeeze(2)
    out.slots_GR.copy_(block_GR.long() * block_size + out.positions_R % block_size)
    for table_PN, row_PR in zip(kept.knobs, out.knobs, strict=True):
        row_PR.copy_(table_PN[:, rows.slots_R])


def derive(rows: Rows, kept: Kept, block_size: int, out: Tokens) -> None:
    """Write new blocks into the kept tables, and all of `out`."""
    if on_gpu(rows.slots_R, kept.table_GNB):
        from headrace.kernels import configs
        from headrace.kernels.gpu import derive as gpu  # needs triton, which only GPU builds of torch bring

        gpu.derive(rows, kept, block_size, out, configs.pdl(rows.slots_R.device))
    else:
        derive_ref(rows, kept, block_size, out)
