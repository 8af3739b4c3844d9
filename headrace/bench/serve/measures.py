"""Numbers out of samples, each with its formula; docs/bench-serve.md says them in words.

For a request with n tokens, due at d, sent at s, tokens at t_1 ... t_n, over at e:

    ttft   t_1 - d                      e2e   t_n - d
    tpot   (t_n - t_1) / (n - 1)        lag   s - d
    itl    t_i - t_(i-1), for every i; tokens that came in one chunk share the time since the one before it

`d` is when the request should have been sent: a client that comes too late makes a server look slow, never fast.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import sqrt
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import Refused
from headrace.bench.serve.sample import Sample

Floats = NDArray[np.float64]
Json = dict[str, Any]
Definitions = Literal["headrace", "vllm", "guidellm", "mlperf"]
PERCENTILES = (50, 90, 95, 99)
BATCHES = 20
"""Parts that a run is cut into for confidence intervals of what is not independent: tokens of one request."""

T95 = 2.093
"""Student's t, two-sided 95%, 19 degrees of freedom: for BATCHES parts."""

Z95 = 1.96
NAMES = ("ttft", "tpot", "itl", "e2e")


class Spread(NamedTuple):
    """A distribution of `n` values. `percentiles`: part -> (value, low, high), a 95% confidence interval or None."""

    n: int
    mean: float
    std: float
    least: float
    most: float
    percentiles: dict[int, tuple[float, float | None, float | None]]

    @classmethod
    def of(cls, values: Sequence[float] | Floats, batches: Sequence[Floats] | None = None) -> "Spread | None":
        """None of nothing. `batches` are the same values in independent parts, where they are not independent."""
        array = np.asarray(values, dtype=np.float64)
        if not array.size:
            return None
        ordered = np.sort(array)
        found = {}
        for part in PERCENTILES:
            value = float(np.percentile(ordered, part))
            bounds = _by_batches(batches, part, value) if batches else interval(ordered, part / 100)
            found[part] = (value, *bounds)
        return cls(
            array.size, float(array.mean()), float(array.std()), float(ordered[0]), float(ordered[-1]), found
        )

    def as_json(self) -> Json:
        """With its percentiles under names such as p99, and their intervals under p99_ci95."""
        found: Json = {"n": self.n, "mean": self.mean, "std": self.std, "min": self.least, "max": self.most}
        for part, (value, low, high) in self.percentiles.items():
            found |= {f"p{part}": value, f"p{part}_ci95": [low, high]}
        return found


def interval(ordered: Floats, part: float) -> tuple[float | None, float | None]:
    """A 95% confidence interval of a percentile of independent values, whatever their distribution.

    The number of values below the percentile is binomial; its normal approximation gives the ranks of two order
    statistics (Conover, Practical Nonparametric Statistics). None for a bound that so few values cannot give.
    """
    n = len(ordered)
    middle, reach = n * part, Z95 * sqrt(n * part * (1 - part))
    low, high = int(np.floor(middle - reach)), int(np.ceil(middle + reach))
    return (float(ordered[low - 1]) if low >= 1 else None, float(ordered[high - 1]) if high <= n else None)


def _by_batches(batches: Sequence[Floats], part: int, value: float) -> tuple[float | None, float | None]:
    """Batch means: around the percentile of all, as wide as those of the parts of the run are apart."""
    found = [float(np.percentile(batch, part)) for batch in batches if batch.size >= 10]
    if len(found) < BATCHES:
        return None, None
    error = T95 * float(np.std(found, ddof=1)) / sqrt(len(found))
    return max(0.0, value - error), value + error


# -- of one request -----------------------------------------------------------------------------------------------


def ttft(sample: Sample, definitions: Definitions = "headrace") -> float | None:
    """Seconds to the first token."""
    if definitions == "vllm":
        return None if sample.opened is None else sample.opened - sample.sent
    if sample.first is None:
        return None
    return sample.first - (sample.scheduled if definitions in ("headrace", "mlperf") else sample.sent)


def e2e(sample: Sample, definitions: Definitions = "headrace") -> float | None:
    """Seconds to the last token; GuideLLM: to the end of the stream."""
    end = sample.ended if definitions == "guidellm" else sample.last
    if end is None:
        return None
    return end - (sample.scheduled if definitions in ("headrace", "mlperf") else sample.sent)


def tpot(sample: Sample, definitions: Definitions = "headrace") -> float | None:
    """Seconds per token after the first; GuideLLM: per token, the first included."""
    if sample.last is None or sample.first is None or sample.output_tokens < 1:
        return None
    if definitions == "guidellm":
        return (sample.last - sample.sent) / sample.output_tokens
    if sample.output_tokens < 2:
        return None
    if definitions == "vllm":
        whole, first = e2e(sample, "vllm"), ttft(sample, "vllm")
        return None if whole is None or first is None else (whole - first) / (sample.output_tokens - 1)
    return (sample.last - sample.first) / (sample.output_tokens - 1)


def itls(sample: Sample, definitions: Definitions = "headrace") -> list[float]:
    """Seconds between tokens; GuideLLM: their mean, once per request; vLLM: between chunks."""
    if definitions == "guidellm":
        mean = tpot(sample)
        return [] if mean is None else [mean]
    if not sample.tokens or definitions == "vllm":
        return sample.chunks
    found = [0.0] * max(0, sample.tokens[0] - 1)
    for gap, tokens in zip(sample.chunks, sample.tokens[1:], strict=False):
        found += [gap / tokens] * tokens
    return found


OF_ONE: dict[str, Callable[[Sample, Definitions], float | None]] = {"ttft": ttft, "tpot": tpot, "e2e": e2e}


# -- of a run -----------------------------------------------------------------------------------------------------


class Summary(NamedTuple):
    """What a run (or a part of it) came to. Times in seconds, rates per second.

    sent        requests that were sent         outcomes    how many of them ended how
    good, goodput       requests within the limits, and of them per second; None without limits
    attained    their part of all that were sent, our own cancellations left out
    lag         how late the client was
    inexact     answers whose tokens the server did not count
    """

    duration: float
    sent: int
    outcomes: dict[str, int]
    requests_per_second: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    output_per_second: float
    total_per_second: float
    spreads: dict[str, Spread | None]
    lag: Spread | None
    good: int | None
    goodput: float | None
    attained: float | None
    inexact: int
    reasons: dict[str, int]

    @property
    def failed(self) -> int:
        """Requests that ended badly; those that were refused are not among them."""
        return self.outcomes.get("error", 0) + self.outcomes.get("unfinished", 0)

    def as_json(self) -> Json:
        """As results have it, with confidence intervals; times in seconds."""
        found = {name: value for name, value in self._asdict().items() if name not in ("spreads", "lag")}
        spreads = {"lag": self.lag, **self.spreads}
        return found | {name: spread and spread.as_json() for name, spread in spreads.items()}

    def value(self, name: str) -> float | None:
        """A number by the name it has in limits; see KNOWN."""
        return value(self.as_json(), name)


def value(summary: Json, name: str) -> float | None:
    """A number of a summary as results have it: `ttft_p99`, `tpot_mean`, `output_per_second`, `error_rate`..."""
    head, _, tail = name.rpartition("_")
    if head in NAMES:
        spread = summary.get(head)
        return None if spread is None else spread.get(tail)
    if name in ("error_rate", "refusal_rate"):
        outcomes, sent = summary.get("outcomes", {}), summary.get("sent")
        count = outcomes.get("refused", 0)
        if name == "error_rate":
            count = outcomes.get("error", 0) + outcomes.get("unfinished", 0)
        return count / sent if sent else None
    return summary.get(name)


RATES = ("requests_per_second", "output_per_second", "total_per_second", "goodput", "attained")
FLOORS = frozenset(RATES)
"""Numbers that are better when higher."""

KNOWN = (
    *(f"{name}_{what}" for name in NAMES for what in ("mean", *(f"p{part}" for part in PERCENTILES))),
    *("error_rate", "refusal_rate"),
    *RATES,
)
"""Names of numbers that limits and comparisons may speak of."""


def read_terms(text: str, form: re.Pattern[str], what: str, param: str) -> list[re.Match[str]]:
    """The parts of `a<1,b<2`: group 1 of `form` is a name of KNOWN, group 3 a number. Raises Refused."""
    found: list[re.Match[str]] = []
    for part in text.split(","):
        match = form.fullmatch(part)
        try:
            if match is None or match[1] not in KNOWN:
                raise ValueError(part)
            float(match[3])
        except ValueError:
            raise Refused(
                f"{part.strip()!r} is no {what}", param=param, hint=f"known names: {', '.join(KNOWN)}"
            ) from None
        found.append(match)
    return found


def summarize(
    samples: Sequence[Sample],
    duration: float,
    limits: dict[str, float] | None = None,
    definitions: Definitions = "headrace",
) -> Summary:
    """What samples came to over a time. `limits`: seconds that `ttft`, `tpot` and `e2e` of a good request may have."""
    ok = [sample for sample in samples if sample.outcome == "ok"]
    outcomes = dict(Counter(sample.outcome for sample in samples))
    reasons = Counter(sample.reason for sample in samples if sample.outcome not in ("ok", "cancelled"))
    generated = sum(sample.output_tokens for sample in samples)
    given = sum(sample.prompt_tokens for sample in ok)
    seconds = max(duration, 1e-9)
    good = sum(is_good(sample, limits, definitions) for sample in ok) if limits else None
    meant = sum(count for outcome, count in outcomes.items() if outcome != "cancelled")
    return Summary(
        duration=duration,
        sent=len(samples),
        outcomes=outcomes,
        requests_per_second=len(ok) / seconds,
        input_tokens=given,
        output_tokens=generated,
        cached_tokens=sum(sample.cached_tokens for sample in ok),
        output_per_second=generated / seconds,
        total_per_second=(generated + given) / seconds,
        spreads=_spreads(ok, definitions),
        lag=Spread.of([sample.sent - sample.scheduled for sample in samples]),
        good=good,
        goodput=None if good is None else good / seconds,
        attained=None if good is None or not meant else good / meant,
        inexact=sum(not sample.counted for sample in ok),
        reasons=_often(reasons),
    )


def _often(reasons: Counter[str]) -> dict[str, int]:
    """The 20 most frequent first; beyond them, what they differ in (an id, a time) is not worth a line each."""
    first = dict(reasons.most_common(20))
    rest = reasons.total() - sum(first.values())
    return first | ({"other reasons": rest} if rest else {})


def _spreads(ok: Sequence[Sample], definitions: Definitions) -> dict[str, Spread | None]:
    found: dict[str, Spread | None] = {}
    for name, measure in OF_ONE.items():
        found[name] = Spread.of([value for one in ok if (value := measure(one, definitions)) is not None])
    cuts = [n * len(ok) // BATCHES for n in range(BATCHES + 1)]
    parts = [
        np.array([gap for one in ok[a:b] for gap in itls(one, definitions)], np.float64)
        for a, b in pairwise(cuts)
    ]
    found["itl"] = Spread.of(np.concatenate(parts), parts)
    return {name: found[name] for name in NAMES}


def is_good(sample: Sample, limits: dict[str, float], definitions: Definitions = "headrace") -> bool:
    """Whether a request that ended well kept every limit. A measure that it has not (one token has no tpot) holds."""
    found = {name: OF_ONE[name](sample, definitions) for name in limits}
    return all((value := found[name]) is None or value <= limit for name, limit in limits.items())


def read_limits(text: str) -> dict[str, float]:
    """`ttft=0.5,tpot=0.05` as limits of a good request, in seconds. Raises Refused."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            limits[name.strip()] = float(value)
        except ValueError:
            limits[""] = 0
        if not limits.keys() <= OF_ONE.keys() or any(not 0 < limit < 1e6 for limit in limits.values()):
            raise Refused(
                f"--goodput is {text!r}; expected limits in seconds of ttft, tpot or e2e, such as ttft=0.5,tpot=0.05",
                param="goodput",
            )
    return limits
