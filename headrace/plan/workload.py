"""What is asked of a model: lengths, how many at once, what prompts share; and the limits that must hold."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from headrace.base.errors import Refused, UnknownName

MOST = 10_000_000


class Draft(NamedTuple):
    """Speculation: `tokens` guessed per step, each right with probability `acceptance` if those before it were."""

    tokens: int
    acceptance: float

    @property
    def made(self) -> float:
        """Tokens that a step makes on average (Leviathan et al., 2023, equation 1)."""
        a, k = self.acceptance, self.tokens
        return k + 1.0 if a == 1 else (1 - a ** (k + 1)) / (1 - a)


class Workload(NamedTuple):
    """Requests that are alike: tokens in, tokens out, how many at once, how many first tokens all have in common."""

    tokens_in: int = 1000
    tokens_out: int = 300
    concurrency: int = 64
    shared: int = 0
    draft: Draft | None = None

    @property
    def length(self) -> int:
        return self.tokens_in + self.tokens_out


KEYS = {"in": "tokens_in", "out": "tokens_out", "concurrency": "concurrency", "prefix": "shared"}


def workload(text: str) -> Workload:
    """From `in=1000,out=300,concurrency=64,prefix=0`. Raises Refused or UnknownName for what it cannot be."""
    found: dict[str, int] = {}
    for key, value in _pairs(text, "workload", r"=", KEYS):
        low = 0 if key == "prefix" else 1
        if not re.fullmatch(r"\d{1,9}", value) or not low <= int(value) <= MOST:
            raise Refused(
                f"workload: {key} is {value!r}; expected a whole number from {low} to {MOST}",
                param="workload",
            )
        found[KEYS[key]] = int(value)
    made = Workload()._replace(**found)
    if made.shared >= made.tokens_in:
        raise Refused(
            f"workload: a prefix of {made.shared} tokens leaves nothing of prompts of {made.tokens_in}",
            param="workload",
        )
    return made


def _pairs(text: str, what: str, signs: str, known: Any) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, sign, value = (
            piece.strip() for piece in ([*re.split(f"({signs})", part, maxsplit=1), "", ""])[:3]
        )
        if key not in known:
            raise UnknownName.among(f"{what} setting", key, list(known), param=what)
        if not sign:
            raise Refused(f"{what}: {key} has no value", param=what, hint=f"as in {EXAMPLES[what]}")
        pairs.append((key, value))
    keys = [key for key, _ in pairs]
    if doubled := sorted({key for key in keys if keys.count(key) > 1}):
        raise Refused(f"{what}: {', '.join(doubled)} is given twice", param=what)
    return pairs


EXAMPLES = {"workload": "in=1000,out=300,concurrency=64", "slo": "ttft<0.5,tpot<0.05"}
MEASURES = ("ttft", "ttft_p99", "tpot", "e2e")


class Limit(NamedTuple):
    """A measure, in seconds, that must stay below a value."""

    measure: str
    below: float


def limits(text: str) -> list[Limit]:
    """From `ttft<0.5,tpot<0.05`, in seconds. Raises Refused or UnknownName for what it cannot be."""
    found: list[Limit] = []
    for key, value in _pairs(text, "slo", "<=?", MEASURES):
        try:
            below = float(value)
        except ValueError:
            below = 0.0
        if not 0 < below < float("inf"):
            raise Refused(f"slo: {key} is {value!r}; expected seconds above 0", param="slo")
        found.append(Limit(key, below))
    if not found:
        raise Refused("the slo is empty", param="slo", hint=f"as in {EXAMPLES['slo']}")
    return found


def holds(found: list[Limit], measure: Callable[[str], float]) -> bool:
    """Whether every limit holds for what `measure` says."""
    return all(measure(limit.measure) <= limit.below for limit in found)
