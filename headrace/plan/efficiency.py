"""What part of a data sheet's speeds an engine reaches: one table per engine, fitted to measured runs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

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
    """Parts of a device's speeds (0 to 1), and times that do not depend on sizes (microseconds)."""

    weights: Mapping[str, float]
    """Of the bandwidth, when weights are read: by scheme."""
    matmul: Mapping[str, float]
    """Of the arithmetic, when they are multiplied with many tokens: by scheme."""
    kv: float
    """Of the bandwidth, when the KV cache is read."""
    attention: float
    """Of the bf16 arithmetic, in the attention of a prompt."""
    moves: float
    """Of the bandwidth, when activations go from one operation to the next."""
    step_us: float
    """Per step: what the host does while the device waits."""
    layer_us: float
    """Per layer of a step: launches, and operations too small to be limited by anything else."""
    row_us: float
    """Per row of a step: scheduling, sampling, bookkeeping."""
    measured: frozenset[str] = frozenset()
    """Schemes whose numbers come from runs of this engine; the others are borrowed."""

    def of_weights(self, scheme: str) -> float:
        return _own_or_like(self.weights, scheme)

    def of_matmul(self, scheme: str) -> float:
        return _own_or_like(self.matmul, scheme)

    def values(self) -> dict[str, float]:
        """Every number by its name, such as `kv` or `weights.fp8`."""
        plain = ("kv", "attention", "moves", "step_us", "layer_us", "row_us")
        found = {name: float(getattr(self, name)) for name in plain}
        found |= {f"weights.{name}": value for name, value in self.weights.items()}
        return found | {f"matmul.{name}": value for name, value in self.matmul.items()}

    def changed(self, values: Mapping[str, float]) -> "Efficiency":
        """The same with other numbers, named as in `values()`."""
        plain = {name: value for name, value in values.items() if "." not in name}
        weights, matmul = dict(self.weights), dict(self.matmul)
        for name, value in values.items():
            table, _, scheme = name.partition(".")
            if scheme:
                (weights if table == "weights" else matmul)[scheme] = value
        return replace(self, weights=MappingProxyType(weights), matmul=MappingProxyType(matmul), **plain)


def _own_or_like(table: Mapping[str, float], scheme: str) -> float:
    return table[scheme] if scheme in table else table.get(LIKE.get(scheme, "bf16"), table["bf16"])


def _table(rows: dict[str, tuple[float, float]]) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """(weights, matmul) from scheme: (weights, matmul)."""
    return (
        MappingProxyType({name: row[0] for name, row in rows.items()}),
        MappingProxyType({name: row[1] for name, row in rows.items()}),
    )


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
    rows: int
    small_rows: int
    """Rows of a step on devices of less than 60 GiB."""
    on: Mapping[str, Efficiency]


# Fitted by plan/calibrate.py to the rows of docs/plan.md, "How well it predicts", all of one H200. `attention` is not
# fitted but measured by itself. What no run of an engine could tell is taken from the other one.
_HEADRACE = Efficiency(
    *_table({"bf16": (0.87, 0.75), "fp8": (0.77, 0.73), "w4a16": (0.56, 0.58)}),
    kv=0.88, attention=0.42, moves=0.33, step_us=137, layer_us=11, row_us=2.5,
    measured=frozenset({"bf16", "fp8", "w4a16"}),
)  # fmt: skip
_VLLM = Efficiency(
    *_table({"bf16": (0.95, 0.77), "fp8": (0.88, 0.72), "w4a16": (0.40, 0.70)}),
    kv=0.65, attention=0.50, moves=0.26, step_us=1050, layer_us=20, row_us=8.5,
    measured=frozenset({"bf16", "fp8", "w4a16"}),
)  # fmt: skip
_CPU = Efficiency(  # fitted to vLLM's rows on two cores
    *_table({"bf16": (0.85, 0.25), "fp8": (0.8, 0.20), "w4a16": (0.6, 0.20)}),
    kv=0.5, attention=0.15, moves=0.3, step_us=15_000, layer_us=80, row_us=80.0,
)  # fmt: skip

ENGINES = {
    engine.name: engine
    for engine in (
        Engine("headrace", "this engine", 0.92, True, 552_402_944, 8192, 1024, 256,
               MappingProxyType({"gpu": _HEADRACE, "cpu": _CPU})),
        Engine("vllm", "vLLM 0.25.1, its defaults", 0.90, False, 620_000_000, 8192, 1024, 256,
               MappingProxyType({"gpu": _VLLM, "cpu": _CPU})),
    )
}  # fmt: skip


def engine(name: str) -> Engine:
    """The engine of that name. Raises UnknownName with the nearest one."""
    if name.lower() not in ENGINES:
        raise UnknownName.among("engine", name, list(ENGINES), param="engine")
    return ENGINES[name.lower()]
