"""The flags that say how tokens are chosen, and what they are where none is given."""

from dataclasses import asdict, dataclass
from typing import Annotated

import msgspec
from cyclopts import Group, Parameter

from headrace.base.config import knob
from headrace.engine.request import SamplingParams

MOST_TOKENS = 1024
"""Longest answer in a terminal where nothing is said: a small model may never end by itself."""
TEMPERATURE = 0.7
"""For a model whose makers recommend nothing: the model as it is rambles, greedy repeats itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What the flags say; None: not given."""

    max_tokens: int | None = knob(None, f"longest answer, in tokens; default: {MOST_TOKENS}")
    temperature: float | None = knob(
        None,
        "0 always takes the likeliest token, 2 is wildest; default: what the model's makers recommend,"
        f" else {TEMPERATURE}",
    )
    top_p: float | None = knob(
        None, "sample from the likeliest tokens that have this much probability together"
    )
    top_k: int | None = knob(None, "sample from this many likeliest tokens; 0: from all")
    min_p: float | None = knob(None, "drop tokens less probable than this times the likeliest one")
    repetition_penalty: float | None = knob(None, "above 1: tokens seen before become less likely; 1: off")
    stop: tuple[str, ...] | None = knob(None, "text that ends the answer; may be given several times")

    def params(self, recommended: SamplingParams) -> SamplingParams:
        """For one answer: the flags given, else what the model's makers recommend. Raises Refused."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if recommended == SamplingParams():
            recommended = msgspec.structs.replace(recommended, temperature=TEMPERATURE)
        return msgspec.structs.replace(recommended, **{"max_tokens": MOST_TOKENS, **given})


SamplingFlags = Annotated[Sampling, Parameter(name="*", group=Group("Sampling", sort_key=1), negative=())]
"""The type of a command's parameter that brings all of these flags."""
