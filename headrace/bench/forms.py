"""What structured output costs in throughput: the same work without forms, with schemas met before, with new ones."""

from collections.abc import Callable, Sequence
from itertools import count
from statistics import median
from time import perf_counter

from headrace.api.llm import LLM
from headrace.base.errors import Broken
from headrace.bench.masks import schema
from headrace.bench.result import Measure, spread
from headrace.bench.workloads import Workload
from headrace.engine.request import SamplingParams
from headrace.engine.structured import StructuredOutputsParams

KINDS = NONE, MET, NEW = "no form", "met before", "new"
ENDS = ("length", "stop")
"""How answers may end."""

Speeds = dict[str, list[float]]
"""Output tokens per second of every round, by kind of forms."""


def measure(
    llm: LLM, work: Workload, rounds: int, temperature: float, said: Callable[[str], None] = lambda _: None
) -> Speeds:
    """Every kind once a round, in turns, after a round to warm up; each run has other tokens, each round another order.

    No two requests of a run have the same schema. Raises Refused without a tokenizer, Broken as soon as an answer ends
    otherwise than its length or its form asks.
    """
    seeds, runs = count(), count(1)

    def make() -> list[StructuredOutputsParams]:
        return [StructuredOutputsParams(json=schema(next(seeds))) for _ in work.prompts]

    def meet() -> None:
        for form in met:
            llm.intake.grammar(form)

    met = make()
    compiled = llm.intake.begin([SamplingParams(structured_outputs=form) for form in met])
    meet()
    speeds: Speeds = {kind: [] for kind in KINDS}
    for number in range(rounds + 1):
        turn = number % len(KINDS)
        for kind in [*KINDS[turn:], *KINDS[:turn]]:
            if kind == MET:
                meet()  # again: new ones may have taken their places among those that are kept
            forms = make() if kind == NEW else met if kind == MET else [None] * len(met)
            speed = _run(llm, work.again(next(runs), llm.intake.vocab), forms, temperature)
            if number:
                speeds[kind].append(speed)
                said(f"round {number} of {rounds}: {kind} {speed:,.0f} tok/s")
    del compiled  # held until now: what is dropped would be compiled again
    return speeds


def ratios(speeds: Speeds, kind: str) -> list[float]:
    """Of each round: the throughput with forms as a part of that without."""
    return [formed / free for formed, free in zip(speeds[kind], speeds[NONE], strict=True)]


def ratio(speeds: Speeds, kind: str) -> float:
    """The median with forms as a part of the median without."""
    return median(speeds[kind]) / median(speeds[NONE])


def measures(speeds: Speeds) -> list[Measure]:
    """Median tokens per second of each kind; ratios of medians, whose spread is that of the rounds' own ratios."""
    rows = [
        Measure(f"{kind}: output", median(found), "tok/s", "higher", spread(found))
        for kind, found in speeds.items()
    ]
    return rows + [
        Measure(f"{kind}: against {NONE}", ratio(speeds, kind), "x", "higher", spread(ratios(speeds, kind)))
        for kind in (MET, NEW)
    ]


def _run(
    llm: LLM, work: Workload, forms: Sequence[StructuredOutputsParams | None], temperature: float
) -> float:
    """Output tokens per second."""
    params = [
        SamplingParams(
            temperature=temperature, ignore_eos=True, max_tokens=n, detokenize=False, structured_outputs=form
        )
        for n, form in zip(work.outputs, forms, strict=True)
    ]
    prompts = [{"prompt_token_ids": ids} for ids in work.prompts]
    began = perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = perf_counter() - began
    answers = [output.outputs[0] for output in outputs]
    if others := [str(answer.finish_reason) for answer in answers if answer.finish_reason not in ENDS]:
        raise Broken(
            f"{len(others)} of {len(answers)} answers ended with {' or '.join(sorted(set(others)))};"
            f" expected {' or '.join(ENDS)}",
            hint="the warnings before this say why",
        )
    return sum(len(answer.token_ids) for answer in answers) / seconds
