"""What kernels in Gluon, Triton's lower language, share: names that differ between versions, and work in equal shares.

Work is a line of steps, some columns of a tile each, tile after tile, cut into equal shares for as many programs as the
device has multiprocessors; of many tiles each program first takes whole ones (stream-K: Osama et al. 2023,
section 4.4). Shares that end inside a tile leave their sums in memory; who comes last at a tile adds them up in order.
"""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

EVEN = 1.07
"""So many places for each tile are few enough idle ones."""
_Memory = gl.shared_memory_descriptor
reinterpret = _Memory.reinterpret if hasattr(_Memory, "reinterpret") else _Memory._reinterpret
"""(memory, dtype, shape, layout): shared memory seen otherwise. Versions: see configs.GLUON."""
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
"""All threads of a partition meet."""


@gluon.jit
def work_of(steps, share, tiles, whole):
    """Where this program's part of the line begins, and its steps: of `whole` tiles of its own, then of the line."""
    begin = gl.program_id(0) * share
    end = gl.minimum(begin + share, (tiles - whole * gl.num_programs(0)) * steps)
    return begin, whole * steps + gl.maximum(end - begin, 0)


@gluon.jit
def part_at(i, whole, begin, steps, total, m_tiles, n_tiles):
    """Of this program's i-th step: tile of the line or -1, m, n, first step, steps to the tile's or the work's end.

    Tiles of 8 row tiles of inputs follow each other, so that they and the weights are found in L2.
    """
    programs = gl.num_programs(0)
    if i < whole * steps:
        line, tile, first = -1, gl.program_id(0) + i // steps * programs, i % steps
    else:
        at = begin + i - whole * steps
        line, first = at // steps, at % steps
        tile = whole * programs + line
    above = 0
    if m_tiles > 8:
        group = tile // (8 * n_tiles)
        tile -= group * (8 * n_tiles)
        above = group * 8
    height = gl.minimum(m_tiles - above, 8)
    return line, above + tile % height, tile // height, first, gl.minimum(steps - first, total - i)


def shares(tiles: int, steps: int, programs: int, parts: int) -> tuple[int, int, int]:
    """(programs, tiles that each has to itself, steps of the line for each), tiles being cut into about `parts`.

    The line is one to two tiles for every program: shorter ones are cut into many parts, which must be added up. No
    tile is cut where the last turn of whole ones leaves few programs idle.
    """
    turns = triton.cdiv(tiles, programs)
    if turns * programs <= EVEN * tiles:
        return min(tiles, programs), tiles // programs, steps
    whole = max(tiles // programs - 1, 0)
    line = (tiles - whole * programs) * steps
    share = max(1, triton.cdiv(line, programs), triton.cdiv(steps, parts))
    return programs if whole else triton.cdiv(line, share), whole, share
