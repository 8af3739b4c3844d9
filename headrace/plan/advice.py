"""What to change: each change on its own, priced by the same model, best first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from headrace.plan.forecast import Forecast
from headrace.plan.options import Option, splits
from headrace.plan.scheme import SCHEMES
from headrace.plan.workload import Draft

GUESSES = Draft(3, 0.6)
"""Speculation that is assumed where it is proposed: an EAGLE-like head's on chat."""
NOTABLE = 0.02
"""A change that gains less than this part of anything is not worth a line."""


@dataclass(frozen=True, slots=True)
class Advice:
    """A change, and what it makes of the numbers; ratios to what is now, None where nothing runs now."""

    text: str
    flags: str
    option: Option
    forecast: Forecast
    throughput: float | None
    tpot: float | None
    ttft: float | None
    cost: float | None

    @property
    def borrowed(self) -> bool:
        return self.option.borrowed


Goal = Callable[[Forecast], float]
GOALS: dict[str, Goal] = {
    "cost": lambda f: f.cost,
    "throughput": lambda f: 1 / f.output_per_s,
    "latency": lambda f: f.e2e,
}
"""What is made small."""


def advise(option: Option, goal: str = "cost") -> list[Advice]:
    """Changes that gain in some measure, best by the goal first; what would fit, where nothing fits now."""
    now = option.forecast
    found: list[Advice] = []
    for text, flags, changed in (*_narrower(option), *_more_devices(option), *_other_load(option)):
        if (then := changed.forecast) is not None:
            made = Advice(text, flags, changed, then, *_ratios(now, then))
            if now is None or _gains(made):
                found.append(made)
    return sorted(found, key=lambda advice: GOALS[goal](advice.forecast))


def _ratios(now: Forecast | None, then: Forecast) -> tuple[float | None, ...]:
    if now is None:
        return None, None, None, None
    return (
        then.output_per_s / now.output_per_s,
        then.tpot / now.tpot if now.tpot else None,
        then.ttft / now.ttft,
        then.cost / now.cost if now.cost else None,
    )


def _gains(made: Advice) -> bool:
    less = [ratio for ratio in (made.tpot, made.ttft, made.cost) if ratio is not None]
    return (made.throughput or 0) > 1 + NOTABLE or any(ratio < 1 - NOTABLE for ratio in less)


Changes = Iterator[tuple[str, str, Option]]
"""What it is, the flags that say it, the option changed."""


def _narrower(option: Option) -> Changes:
    now = SCHEMES[option.scheme]
    for name in ("fp8", "int8", "w8a16", "w4a16", "nvfp4"):
        kept = SCHEMES[name]
        has_units = kept.arithmetic == "bf16" or bool(
            {"fp8": option.gpu.fp8, "int8": option.gpu.int8, "fp4": option.gpu.fp4}[kept.arithmetic]
        )
        if kept.bits >= now.bits or not has_units or (name in ("int8", "w8a16") and option.gpu.fp8):
            continue
        yield f"{kept.about} ({name})", f"--scheme {name}", replace(option, scheme=name)
    if option.setup.kv_bits > 8 and option.anatomy.windows:
        yield "KV cache in 8 bits", "--kv fp8", replace(option, kv="fp8")
    if now.bits > 8 and option.gpu.fp8 and option.setup.kv_bits > 8:
        yield "both of fp8", "--scheme fp8 --kv fp8", replace(option, scheme="fp8", kv="fp8")


def _more_devices(option: Option) -> Changes:
    for gpus in (2 * option.gpus, 4 * option.gpus, 8 * option.gpus):
        if gpus <= 16 and option.gpu.kind == "gpu" and splits(option.anatomy, gpus):
            yield f"{gpus} devices share the model", f"--gpus {gpus}", replace(option, gpus=gpus)


def _other_load(option: Option) -> Changes:
    work = option.work
    said = f"in={work.tokens_in},out={work.tokens_out}"
    longest = option.memory.longest
    if work.length <= longest < (option.max_len or option.anatomy.max_len):
        text = f"a longest request of {longest} tokens"
        yield text, f"--max-len {longest}", replace(option, max_len=longest)
    if work.concurrency > 1:
        fewer = work.concurrency // 2
        flags = f'--workload "{said},concurrency={fewer}"'
        yield f"{fewer} at once, the rest elsewhere", flags, option.asked(concurrency=fewer)
    room = option.memory.requests(work.tokens_in + work.tokens_out / 2, work.shared)
    if room > work.concurrency:
        more = min(room, 2 * work.concurrency)
        flags = f'--workload "{said},concurrency={more}"'
        yield f"{more} at once", flags, option.asked(concurrency=more)
    if work.draft is None and work.tokens_out > 1:
        text = f"speculation: {GUESSES.tokens} tokens, each right in {GUESSES.acceptance:.0%} of cases"
        yield text, f"--draft {GUESSES.tokens},{GUESSES.acceptance}", option.asked(draft=GUESSES)
    if work.shared == 0 and work.tokens_in > 32:
        half = work.tokens_in // 2
        flags = f'--workload "{said},concurrency={work.concurrency},prefix={half}"'
        yield "prefix caching, if prompts share half", flags, option.asked(shared=half)
