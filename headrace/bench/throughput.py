"""How long the engine takes for a workload: token ids in and out, all requests there from the start."""

from collections.abc import Callable
from time import perf_counter

from headrace.api.llm import LLM
from headrace.bench.result import Measure, spread
from headrace.bench.workloads import Workload
from headrace.engine.request import SamplingParams


def time_workload(
    llm: LLM, work: Workload, repeats: int, temperature: float, said: Callable[[str], None] = lambda _: None
) -> list[Measure]:
    """Run a workload `repeats` times, each with fresh token ids, after a short warm-up of the same shape.

    Seconds of the best repeat, output and total tokens per second, milliseconds per token of a single stream. Raises
    TooLong for what the model cannot do in full.
    """
    work.check(llm.plan.max_len)
    warm = work.warm_up(llm.intake.vocab)
    _run(llm, warm, _params(warm, temperature))
    params = _params(work, temperature)
    seconds = []
    for repeat in range(repeats):
        fresh = work.again(repeat, llm.intake.vocab)
        began = perf_counter()
        _run(llm, fresh, params)
        seconds.append(perf_counter() - began)
        said(f"{work.name} repeat {repeat + 1} of {repeats}: {seconds[-1]:.3f} s")
    best, apart = min(seconds), spread(seconds)
    rows = work.measures(work.name, best, apart)
    if len(work.prompts) == 1 and work.tokens_out > 1:
        rows.append(Measure(f"{work.name}: per token", best / work.tokens_out * 1000, "ms", "lower", apart))
    return rows


def _params(work: Workload, temperature: float) -> list[SamplingParams]:
    return [
        SamplingParams(temperature=temperature, ignore_eos=True, max_tokens=n, detokenize=False)
        for n in work.outputs
    ]


def _run(llm: LLM, work: Workload, params: list[SamplingParams]) -> None:
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in work.prompts], params, use_tqdm=False)
    made = [len(output.outputs[0].token_ids) for output in outputs]
    assert made == work.outputs, "some requests did not get all their tokens"
