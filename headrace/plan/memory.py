"""Where a device's memory goes: the engine's own arithmetic, done without the engine, for devices one has not got."""

from bisect import bisect_left
from dataclasses import dataclass, replace

from headrace.engine.blocks import blocks_for
from headrace.engine.layout import Layout, lay_out
from headrace.plan.cost import Setup
from headrace.plan.efficiency import Engine

BLOCK = 16
"""Tokens of a KV block."""
LARGE = 60 * 2**30
"""Bytes of a device from which on an engine takes its large number of rows."""
CPU_KV, CPU_SHARE, CPU_TOKENS, CPU_ROWS = 4 * 2**30, 0.5, 512, 64
"""On a CPU memory is shared with other programs, and steps are small."""
GRAPHS = 1 << 29
"""Bytes that recorded steps take, roughly. They come out of what an engine leaves free."""


@dataclass(frozen=True, slots=True)
class Memory:
    """One device of a setup, in bytes; a setup's devices are alike."""

    total: int
    context: int
    allowed: int
    """What the engine may take for weights, workspace and KV cache."""
    weights: int
    workspace: int
    graphs: int
    per_block: int
    """Of the cache, for BLOCK tokens of one group of layers."""
    layout: Layout | None
    state: int
    """Kept per running request, however long it is."""
    rows: int
    tokens: int
    beside: bool
    """As Engine has it."""
    longest: int
    """Tokens of a request that the model and the cache allow; 0 where nothing fits."""

    @property
    def pool(self) -> int:
        """Bytes for KV cache and states; below 0 where even the weights do not fit."""
        return self.allowed - self.weights - self.workspace

    @property
    def kv_blocks(self) -> int:
        """Blocks that the engine allots: what fits, and no more than all rows can use."""
        if not self.layout or self.pool <= 0:
            return 0
        one = blocks_for(self.layout.groups, max(1, self.longest), BLOCK, self.tokens)
        return min(self.pool // self.per_block, self.rows * one)

    @property
    def kv_tokens(self) -> int:
        """Tokens that the cache holds if no layer has a window."""
        return self.kv_blocks * BLOCK // len(self.layout.groups) if self.layout else 0

    def each(self, length: float) -> float:
        """Bytes of one running request of that many tokens."""
        blocks = blocks_for(self.layout.groups, max(1, int(length)), BLOCK, self.tokens) if self.layout else 0
        return blocks * self.per_block + self.state

    def requests(self, length: float, shared: int = 0) -> int:
        """How many requests of that length run at once; all begin with the same `shared` tokens."""
        pool = (
            min(self.pool, self.kv_blocks * self.per_block) if self.layout and not self.state else self.pool
        )
        common = self.each(shared) - self.state if shared else 0
        own = self.each(length - shared)
        return max(0, min(self.rows, int((pool - common) // own))) if pool > common else 0


def memory(setup: Setup, engine: Engine, max_len: int | None = None) -> Memory:
    """How `engine` divides each device of a setup, for requests of up to `max_len` tokens."""
    cpu, total = setup.gpu.kind == "cpu", int(setup.gpu.memory)
    context = 0 if cpu else engine.context
    if cpu:
        allowed, tokens, rows = int(total * CPU_SHARE), CPU_TOKENS, CPU_ROWS
    else:
        free = total - context
        allowed = int(free * engine.share) if engine.after_context else int(total * engine.share) - context
        tokens, rows = engine.tokens, engine.rows if total >= LARGE else engine.small_rows
    wanted = max_len or setup.anatomy.max_len
    graphs = 0 if cpu else GRAPHS
    weights = weights_bytes(setup, wanted)
    work = workspace(setup, tokens + rows * engine.beside, rows)
    if cpu:
        allowed = min(allowed, weights + work + CPU_KV)
    if not engine.after_context:
        allowed -= graphs
    layout = lay_out(setup.anatomy.windows) if setup.anatomy.windows else None
    state = sum(kind.state * n / min(setup.gpus, kind.split) for kind, n in setup.anatomy.kinds)
    made = Memory(
        total, context, allowed, weights, work, graphs, _per_block(setup, layout), layout, int(state), rows,
        tokens, engine.beside, 0,
    )  # fmt: skip
    # the longest request, up to what is wanted, that fits alone
    lengths = range(1, wanted + 1)
    return replace(made, longest=bisect_left(lengths, True, key=lambda length: made.each(length) > made.pool))


def _per_block(setup: Setup, layout: Layout | None) -> int:
    if layout is None:
        return 0
    wide = max(kind.kv / min(setup.gpus, kind.split) for kind, _ in setup.anatomy.kinds if kind.kv)
    return int(layout.depth * BLOCK * wide * setup.kv_bits / 8)


def weights_bytes(setup: Setup, max_len: int) -> int:
    """Of one device: its part of the matrices, all of what is small, and the tables of rotations."""
    model, n = setup.anatomy, setup.gpus
    heads = setup.bytes_of_head() * (1 if model.tied else 2)
    matrices = setup.bytes_of(model.linear) + setup.bytes_of_experts(model.routed) + heads
    return int(matrices / n + model.small * setup.scheme.rest / 8 + model.rotary * max_len * 4)


def workspace(setup: Setup, tokens: int, rows: int) -> int:
    """Bytes of a step's activations, its logits and their sampling at the most: see engine/room.py."""
    model, n = setup.anatomy, setup.gpus
    per_token = 4 * model.hidden + (4 * model.attended + 3 * model.inner) / n
    return int(tokens * per_token * setup.scheme.rest / 8 + rows * 4 * model.vocab * 4)
