"""Numbers drawn from what a flag says: a length, a range, a distribution, a mixture."""

from collections.abc import Callable
from random import Random

from headrace.base.errors import Refused

EXPECTED = (
    "a number (128), a range (64-256), normal:MEAN,SPREAD, lognormal:MEDIAN,SIGMA (below 10), exp:MEAN, or a mixture"
    " of numbers (128:0.7,1024:0.3)"
)
STEEPEST = 10

MOST = 2**20

Draw = Callable[[Random], float]


def parse(text: str, flag: str) -> Draw:
    """What draws a number as `text` says. Raises Refused naming the flag."""
    try:
        return _parse(text.strip())
    except ValueError:
        raise Refused(f"--{flag} is {text!r}; expected {EXPECTED}", param=flag) from None


def whole(draw: Draw, random: Random) -> int:
    """A whole number from 1 to a million."""
    return min(max(1, round(draw(random))), MOST)


def _parse(text: str) -> Draw:
    kind, colon, rest = text.partition(":")
    if colon and kind in ("normal", "lognormal", "exp"):
        return _distribution(kind, [_positive(part) for part in rest.split(",")])
    if colon:
        return _mixture(text)
    low, dash, high = text.partition("-")
    if dash:
        first, last = _positive(low), _positive(high)
        if last < first:
            raise ValueError(text)
        return lambda random: random.uniform(first, last)
    value = _positive(text)
    return lambda random: value


def _distribution(kind: str, numbers: list[float]) -> Draw:
    if kind == "exp":
        (mean,) = numbers
        return lambda random: random.expovariate(1 / mean) if mean else 0.0
    first, second = numbers
    if kind == "normal":
        return lambda random: random.gauss(first, second)
    if second > STEEPEST:
        raise ValueError(second)
    return lambda random: first * random.lognormvariate(0, second)


def _mixture(text: str) -> Draw:
    pairs = [part.split(":") for part in text.split(",")]
    values, weights = [_positive(value) for value, _ in pairs], [_positive(weight) for _, weight in pairs]
    if not sum(weights):
        raise ValueError(text)
    return lambda random: random.choices(values, weights)[0]


def _positive(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise ValueError(text)
    return value
