"""What part of a data sheet's speeds an engine reaches: one table per engine, fitted to measured runs."""

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.base.errors import UnknownName

LIKE = {
    "fp16": "bf16",
    "fp32": "bf16",
    "int8": "fp8",
    "w8a16": "fp8",
    "mxfp4": "w4a16",
    "nvfp4": "w4a16",
    "q8_0": "fp8",
    "q4_1": "w4a16",
    "q4_0": "w4a16",
}
"""Whose efficiency stands in for a scheme that has none of its own."""


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Parts of a device's speeds (0 to 1), and times that do not depend on sizes (microseconds), by these names.

    weights.SCHEME  of the bandwidth, when weights are read
    matmul.SCHEME   of the arithmetic, when they are multiplied with many tokens
    kv              of the bandwidth, when the KV cache is read
    attention       of the bf16 arithmetic, in the attention of a prompt
    moves           of the bandwidth, when activations go from one operation to the next
    step_us         per step: what the host does while the device waits
    layer_us        per layer of a step: launches, and operations too small to be limited by anything else
    row_us          per row of a step: scheduling, sampling, bookkeeping
    """

    values: Mapping[str, float]
    measured: frozenset[str] = frozenset()
    """Schemes whose numbers come from runs of this engine; the others are borrowed."""

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def of(self, table: str, scheme: str) -> float:
        """A number of a scheme, or of the one that stands in for it; `table` is weights or matmul."""
        tried = (f"{table}.{name}" for name in (scheme, LIKE.get(scheme, "bf16"), "bf16"))
        return next(self.values[name] for name in tried if name in self.values)


def _table(schemes: dict[str, tuple[float, float]], measured: bool, **numbers: float) -> Efficiency:
    """From scheme: (weights, matmul), and the other numbers."""
    for name, (weights, matmul) in schemes.items():
        numbers |= {f"weights.{name}": weights, f"matmul.{name}": matmul}
    return Efficiency(numbers, frozenset(schemes if measured else ()))


@dataclass(frozen=True, slots=True)
class Engine:
    """How an engine divides memory and steps, and how fast it is on each kind of device."""

    name: str
    about: str
    share: float
    """Part of the memory it takes; of what is free once the device's context is there if `after_context`."""
    after_context: bool
    context: int
    """Bytes that a device's context takes."""
    tokens: int
    beside: bool
    """Rows that decode come on top of a step's `tokens`, as long as nothing is guessed, not out of them."""
    rows: int
    small_rows: int
    """Rows of a step on devices of less than 60 GiB."""
    on: Mapping[str, Efficiency]


# Fitted by plan/calibrate.py to the rows of docs/plan.md, "How well it predicts", all of one H200. `attention` is not
# fitted but measured by itself. What no run of an engine could tell is taken from the other one.
_HEADRACE = _table(
    {"bf16": (0.87, 0.77), "fp8": (0.74, 0.71), "w4a16": (0.56, 0.70)}, measured=True,
    kv=0.84, attention=0.42, moves=0.36, step_us=125, layer_us=9.3, row_us=2.2,
)  # fmt: skip
_VLLM = _table(
    {"bf16": (0.95, 0.77), "fp8": (0.88, 0.72), "w4a16": (0.40, 0.70)}, measured=True,
    kv=0.65, attention=0.50, moves=0.26, step_us=1050, layer_us=20, row_us=8.5,
)  # fmt: skip
_CPU = _table(  # fitted to vLLM's rows on two cores
    {"bf16": (0.85, 0.25), "fp8": (0.8, 0.20), "w4a16": (0.6, 0.20)}, measured=False,
    kv=0.5, attention=0.15, moves=0.3, step_us=15_000, layer_us=80, row_us=80.0,
)  # fmt: skip

ENGINES = {
    engine.name: engine
    for engine in (
        Engine("headrace", "this engine", 0.92, True, 552_402_944, 8192, True, 1024, 256,
               {"gpu": _HEADRACE, "cpu": _CPU}),
        Engine("vllm", "vLLM 0.25.1, its defaults", 0.90, False, 620_000_000, 8192, False, 1024, 256,
               {"gpu": _VLLM, "cpu": _CPU}),
    )
}  # fmt: skip


def engine(name: str) -> Engine:
    """The engine of that name. Raises UnknownName with the nearest one."""
    if name.lower() not in ENGINES:
        raise UnknownName.among("engine", name, list(ENGINES), param="engine")
    return ENGINES[name.lower()]
