"""A configuration to be judged: which model on which devices, how it is kept, what is asked of it."""

from dataclasses import dataclass, replace
from typing import Any

from headrace.base.errors import Refused
from headrace.plan.anatomy import Anatomy
from headrace.plan.cost import Setup
from headrace.plan.efficiency import Efficiency, Engine
from headrace.plan.forecast import Forecast, forecast
from headrace.plan.gpus import Gpu
from headrace.plan.memory import Memory, memory
from headrace.plan.scheme import SCHEMES, kv_bits, scheme
from headrace.plan.workload import Workload

MOST_GPUS = 1024
MEASURED_ON = "h200"
"""The device of the runs that the efficiency tables were fitted to."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to serve a model."""

    anatomy: Anatomy
    gpu: Gpu
    engine: Engine
    work: Workload
    gpus: int = 1
    scheme: str = "bf16"
    kv: str = "auto"
    max_len: int | None = None
    price: float | None = None
    """Dollars per hour of one device, where not the table's."""
    reach: Efficiency | None = None
    """The efficiencies, where not the engine's."""

    def asked(self, **work: Any) -> "Option":
        """The same with something else about the workload."""
        return replace(self, work=self.work._replace(**work))

    @property
    def efficiency(self) -> Efficiency:
        return self.reach or self.engine.on[self.gpu.kind]

    @property
    def per_hour(self) -> float:
        """Dollars, for all devices."""
        return self.gpus * (self.gpu.price if self.price is None else self.price)

    @property
    def setup(self) -> Setup:
        kept = scheme(self.scheme)
        bits = kept.rest if self.kv == "auto" else kv_bits(self.kv)
        return Setup(self.anatomy, self.gpu, self.gpus, kept, bits, self.efficiency)

    @property
    def memory(self) -> Memory:
        wanted = self.max_len or self.anatomy.max_len
        return memory(self.setup, self.engine, min(wanted, self.anatomy.max_len))

    @property
    def forecast(self) -> Forecast | None:
        """None where not one request fits."""
        return forecast(self.setup, self.memory, self.work, self.per_hour)

    @property
    def borrowed(self) -> bool:
        """Whether no measured run of this engine is like it: in its scheme, on such devices, with such a cache."""
        measured = self.efficiency.measured
        plain = "bf16" if SCHEMES[self.scheme].plain and self.scheme != "fp32" else self.scheme
        others = self.gpus > 1 or self.kv != "auto" or self.work.draft is not None or not self._dense
        return plain not in measured or others or self.gpu.name != MEASURED_ON

    @property
    def _dense(self) -> bool:
        """Whether the model is of the kind that was measured: grouped attention, no experts."""
        plain = all(kind.lookup == kind.score and not kind.state for kind, _ in self.anatomy.kinds)
        return plain and not self.anatomy.routed

    @property
    def name(self) -> str:
        count = f"{self.gpus} x " if self.gpus > 1 else ""
        cache = "" if self.kv == "auto" else f", KV {self.kv}"
        return f"{count}{self.gpu.name} {self.scheme}{cache}"


def check(option: Option) -> None:
    """Raises Refused or UnknownName for what cannot be asked, whatever the devices."""
    model, work = option.anatomy, option.work
    scheme(option.scheme)
    if option.kv != "auto":
        kv_bits(option.kv)
    if work.length > model.max_len:
        raise Refused(
            f"workload: {work.tokens_in} tokens in and {work.tokens_out} out are more than the {model.max_len}"
            f" positions {model.name} was made for",
            param="workload",
            hint="ask for shorter prompts or answers",
        )
    if option.max_len is not None and not work.length <= option.max_len:
        raise Refused(
            f"workload: requests of {work.length} tokens are longer than --max-len {option.max_len}",
            param="max_len",
            hint=f"use --max-len {work.length} or more",
        )
    if not 1 <= option.gpus <= MOST_GPUS:
        raise Refused(f"--gpus is {option.gpus}; expected 1 to {MOST_GPUS}", param="gpus")
    if not splits(model, option.gpus):
        raise Refused(
            f"{model.name} has {model.heads} query heads, which {option.gpus} devices cannot share",
            param="gpus",
            hint=f"use one of {', '.join(str(n) for n in range(1, 17) if splits(model, n))}",
        )


def splits(model: Anatomy, gpus: int) -> bool:
    """Whether a model can be divided over that many devices: each gets whole query heads, and whole KV heads or one."""
    shared = all(not kind.kv or not kind.split % gpus or not gpus % kind.split for kind, _ in model.kinds)
    return model.heads % gpus == 0 and shared


def default_scheme(model: Anatomy, gpu: Gpu) -> str:
    """As the checkpoint is; float32 on a CPU, where nothing else is said."""
    if model.quantized:
        return model.quantized
    return "fp32" if gpu.kind == "cpu" else "bf16" if model.dtype == "fp32" else model.dtype
