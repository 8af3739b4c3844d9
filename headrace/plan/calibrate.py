"""Fits an engine's efficiencies to measured runs, and says how far the predictions are from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import Refused, UnknownName
from headrace.bench.result import Result
from headrace.bench.workloads import CPU, GPU, workload
from headrace.plan.anatomy import DTYPES, Anatomy, dissect
from headrace.plan.cost import Setup
from headrace.plan.efficiency import Efficiency
from headrace.plan.find import settings
from headrace.plan.gpus import Gpu, gpu
from headrace.plan.mixed import like
from headrace.plan.options import Option
from headrace.plan.replay import Limits, Run, cut

SHARED = {"prefix": 2048, "prefix32": 768}
"""First tokens that all prompts of a named workload have in common."""
PRIOR = 0.1
"""How strongly the efficiencies stay where they are: one run moves what it can tell about, and little else."""
KEPT = frozenset({"attention"})
"""Measured by itself, and hard to tell from other things in the time of a whole run."""
TIME = ": time"


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured workload. `run` is its steps, cut once."""

    name: str
    setup: Setup
    run: Run
    seconds: float

    def predicted(self, reach: Efficiency) -> float:
        return self.run.seconds(replace(self.setup, reach=reach))

    def error(self, reach: Efficiency) -> float:
        """0.1: predicted to take ten percent longer than it does."""
        return self.predicted(reach) / self.seconds - 1


def sample(
    name: str, setup: Setup, requests: Sequence[tuple[int, int]], limits: Limits, seconds: float
) -> Sample:
    """A measured run of requests (tokens in, tokens out) that were all there from the start."""
    return Sample(
        f"{setup.anatomy.name} {setup.scheme.name} {name}",
        setup,
        cut(setup.anatomy, list(requests), limits, SHARED.get(name, 0)),
        seconds,
    )


def read(path: Path, option: Option, known: dict[str, Gpu]) -> list[Sample]:
    """The samples of a result file of `headrace bench throughput`.

    What the file does not say is taken from `option`. Raises Refused for a file of anything else.
    """
    result = Result.read(path, "throughput", "calibrate")
    anatomy = _anatomy(result.settings, option)
    device = _device(result.machine, option, known)
    kept = _scheme(result.settings, option)
    setup = replace(option, anatomy=anatomy, gpu=device, gpus=1, scheme=kept, kv="auto").setup
    limits = _limits(result.settings, option)
    found: list[Sample] = []
    for measure in result.measures:
        name = measure.name.removesuffix(TIME)
        if name == measure.name:
            continue
        if not 0 < measure.value < float("inf"):
            raise Refused(f"{path}: {measure.name} is {measure.value} s", param="calibrate")
        if asked := _requests(name, device.kind == "gpu"):
            found.append(sample(name, setup, asked, limits, measure.value))
    if not found:
        raise Refused(f"{path} has no workload whose requests are known", param="calibrate")
    return found


def _anatomy(said: dict[str, Any], option: Option) -> Anatomy:
    """The model of a result: by its name, or the one that is planned if its files are not here."""
    name = str(said.get("model"))
    try:
        return dissect(name, settings(name)) if "/" not in name or Path(name).is_dir() else option.anatomy
    except UnknownName:
        return option.anatomy


def _scheme(said: dict[str, Any], option: Option) -> str:
    """How a result's weights were kept: as they were quantized, else as its dtype."""
    if scheme := said.get("scheme"):
        return str(scheme)
    quantization = str(said.get("quantization", "none"))
    if quantization == "checkpoint":
        return option.scheme
    return like(quantization) if quantization != "none" else DTYPES.get(str(said.get("dtype")), option.scheme)


def _device(machine: dict[str, Any], option: Option, known: dict[str, Gpu]) -> Gpu:
    if not isinstance(name := machine.get("gpu"), str):
        return option.gpu if option.gpu.kind == "cpu" else known["cpu"]
    try:
        return gpu(name, known)
    except UnknownName:
        return option.gpu


def _limits(said: dict[str, Any], option: Option) -> Limits:
    made = option.memory
    defaults = {"rows": made.rows, "tokens": made.tokens, "kv_tokens": max(1, made.kv_tokens)}
    given = {name: said[name] for name in defaults if isinstance(said.get(name), int) and said[name] > 0}
    return Limits(**(defaults | given), beside=made.beside)


def _requests(name: str, on_gpu: bool) -> list[tuple[int, int]]:
    """Lengths of a workload's requests, by its name or by COUNTxIN+OUT; none where neither is known."""
    if name in (GPU if on_gpu else CPU):
        work = workload(name, 50_000, on_gpu)  # of another vocabulary, other tokens, the same lengths
        return [(len(prompt), out) for prompt, out in zip(work.prompts, work.outputs, strict=True)]
    count, x, lengths = name.partition("x")
    tokens_in, plus, tokens_out = lengths.partition("+")
    if x and plus and all(part.isdecimal() for part in (count, tokens_in, tokens_out)):
        return [(int(tokens_in), int(tokens_out))] * int(count)
    return []


def fit(samples: Sequence[Sample], reach: Efficiency) -> Efficiency:
    """The efficiencies for which the samples are predicted best.

    Least squares of the logarithms of predicted over measured, with the present numbers as a prior, by the
    method of Levenberg and Marquardt (Marquardt, 1963). Parts of a speed stay below 1.
    """
    schemes = {s.setup.scheme.name for s in samples}
    names = [n for n in reach.values if n not in KEPT and ("." not in n or n.partition(".")[2] in schemes)]
    start = np.log([reach[name] for name in names])
    top = np.log([1e6 if name.endswith("_us") else 0.98 for name in names])

    def at(x: NDArray[np.float64]) -> Efficiency:
        fitted = {name: float(np.exp(v)) for name, v in zip(names, x, strict=True)}
        return replace(reach, values={**reach.values, **fitted})

    def residuals(x: NDArray[np.float64]) -> NDArray[np.float64]:
        made = at(x)
        wrong = [np.log(s.predicted(made) / s.seconds) for s in samples]
        return np.concatenate([np.asarray(wrong), PRIOR * (x - start)])

    return replace(at(_minimum(residuals, start, top)), measured=reach.measured | schemes)


def _minimum(residuals: Any, x: NDArray[np.float64], top: NDArray[np.float64]) -> NDArray[np.float64]:
    damping, now = 1e-2, residuals(x)
    for _ in range(40):
        slope = np.stack([(residuals(x + 1e-4 * unit) - now) / 1e-4 for unit in np.eye(len(x))], axis=1)
        step = np.linalg.solve(slope.T @ slope + damping * np.eye(len(x)), -slope.T @ now)
        tried = np.minimum(x + step, top)
        then = residuals(tried)
        if then @ then >= now @ now:
            damping *= 4
            continue
        gained = float(now @ now - then @ then)
        x, now, damping = tried, then, damping / 3
        if gained < 1e-7:
            break
    return x
