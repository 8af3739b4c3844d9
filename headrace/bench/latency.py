"""How long a caller waits: time to first token (TTFT) and between tokens (ITL) of one stream at a time.

TTFT is from the call to the first token; an ITL is the time between two tokens of a stream. Both hold what the
engine takes, without HTTP.
"""

from time import perf_counter

import numpy as np

from headrace.api.llm import LLM
from headrace.bench.result import Measure
from headrace.bench.workloads import custom
from headrace.engine.request import SamplingParams

PERCENTILES = (50, 90, 99)


def measure(llm: LLM, tokens_in: int, tokens_out: int, repeats: int, temperature: float) -> list[Measure]:
    """Percentiles of TTFT and ITL in milliseconds over `repeats` streams with fresh prompts, after one to warm up.

    Raises TooLong for what the model cannot do in full.
    """
    params = SamplingParams(temperature=temperature, ignore_eos=True, max_tokens=tokens_out, detokenize=False)
    work = custom(1, tokens_in, tokens_out, llm.intake.vocab, llm.plan.max_len)
    firsts: list[float] = []
    gaps: list[float] = []
    for repeat in range(repeats + 1):
        (prompt,) = work.again(repeat, llm.intake.vocab).prompts
        times = [perf_counter()]
        for update in llm.stream({"prompt_token_ids": prompt}, params):
            times += [perf_counter()] * len(update.token_ids)
        if repeat:
            waits = np.diff(times)
            firsts.append(float(waits[0]))
            gaps += waits[1:].tolist()
    if not gaps:
        return _rows("TTFT", firsts)
    # Where a step gives several tokens at a time, most gaps are nothing: only the mean says how fast they come.
    mean = Measure("ITL mean", float(np.mean(gaps)) * 1000, "ms", "lower")
    return [*_rows("TTFT", firsts), *_rows("ITL", gaps), mean]


def _rows(name: str, seconds: list[float]) -> list[Measure]:
    return [
        Measure(f"{name} p{share}", float(np.percentile(seconds, share)) * 1000, "ms", "lower")
        for share in PERCENTILES
    ]
