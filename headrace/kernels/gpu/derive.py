"""What a decoding step derives from its rows, in one launch of Triton instead of a dozen small ones."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from headrace.kernels.derive import Kept, Rows, Tokens

PIECE = 2048
"""Entries of a table that are copied at once."""


@triton.jit
def derive_kernel(
    slots_ptr, context_ptr, patch_at_ptr, patch_to_ptr, last_ptr, table_ptr, floats_ptr, ints_ptr,
    ids_ptr, positions_ptr, ends_ptr, places_ptr, tables_ptr, row_floats_ptr, row_ints_ptr,
    N, B, patch_stride, place_stride, tables_stride, knob_stride,
    FLOATS: tl.constexpr, INTS: tl.constexpr, BLOCK: tl.constexpr, PIECE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (row, layer group).

    A slot's table is read and written by the program of its only row, but for nobody's, which is only read. An entry
    that is replaced is taken from the patch, never read back.
    """
    if PDL:
        gdc_launch_dependents()  # of what is written here the next kernels read nothing before they have waited
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    context = tl.load(context_ptr + row)
    at = tl.load(patch_at_ptr + row)
    to = tl.load(patch_to_ptr + group * patch_stride + row)
    line_ptr = table_ptr + (group * N + slot) * B
    position = tl.maximum(context - 1, 0)
    block = tl.load(line_ptr + position // BLOCK)
    for first in range(0, (context + BLOCK - 1) // BLOCK, PIECE):
        b = first + tl.arange(0, PIECE)
        live = b * BLOCK < context
        ids = tl.load(line_ptr + b, mask=live, other=0)
        ids = tl.where((b == at) & (to >= 0), to, ids)
        tl.store(tables_ptr + group * tables_stride + row * B + b, ids, mask=live)
    if to >= 0:
        block = tl.where(position // BLOCK == at, to, block)
        tl.store(line_ptr + at, to)
    tl.store(places_ptr + group * place_stride + row, block.to(tl.int64) * BLOCK + position % BLOCK)
    if group == 0:
        tl.store(ids_ptr + row, tl.load(last_ptr + slot))
        tl.store(positions_ptr + row, position.to(tl.int64))
        tl.store(ends_ptr + row, context.to(tl.int64))
        for p in tl.static_range(FLOATS):
            tl.store(row_floats_ptr + p * knob_stride + row, tl.load(floats_ptr + p * N + slot))
        for p in tl.static_range(INTS):
            tl.store(row_ints_ptr + p * knob_stride + row, tl.load(ints_ptr + p * N + slot))


def derive(rows: Rows, kept: Kept, block_size: int, out: Tokens, pdl: bool = False) -> None:
    """derive.derive on a GPU; tables are copied as far as rows have keys."""
    groups, slots, blocks = kept.table_GNB.shape
    floats, ints = kept.knobs
    assert kept.table_GNB.is_contiguous() and floats.stride() == ints.stride() == (slots, 1)
    assert out.tables_GRB.stride()[1:] == (blocks, 1)
    derive_kernel[(len(rows.slots_R), groups)](
        *rows, kept.last_N, kept.table_GNB, floats, ints,
        out.ids_R, out.positions_R, out.ends_R, out.slots_GR, out.tables_GRB, *out.knobs,
        slots, blocks, rows.patch_to_GR.stride(0), out.slots_GR.stride(0), out.tables_GRB.stride(0),
        out.knobs.floats_PN.stride(0), FLOATS=len(floats), INTS=len(ints), BLOCK=block_size, PIECE=PIECE,
        PDL=pdl, num_warps=4,
    )  # fmt: skip
