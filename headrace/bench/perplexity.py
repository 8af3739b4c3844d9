"""How well a model predicts a text, through the engine that serves."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from headrace.api.llm import LLM
from headrace.api.outputs import RequestOutput
from headrace.base.errors import Refused
from headrace.engine.request import SamplingParams

ONLY_READ = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)


class Perplexity(NamedTuple):
    """exp of the mean negative log-likelihood per token, over `tokens` predicted tokens.

    error  its standard error: that of the mean, carried through the exponential (delta method). It treats tokens as
           independent, which they are not quite, so it is the least that the error can be.
    """

    text: str
    windows: int
    tokens: int
    value: float
    error: float

    @classmethod
    def of(cls, text: str, windows: int, logprobs: Sequence[float]) -> "Perplexity":
        """From the log-probability of each predicted token."""
        n = len(logprobs)
        mean = -math.fsum(logprobs) / n
        spread = math.fsum((-logprob - mean) ** 2 for logprob in logprobs) / max(n - 1, 1)
        value = math.exp(mean)
        return cls(text, windows, n, value, value * math.sqrt(spread / n))


def windows_of(llm: LLM, text: str, name: str, tokens: int, windows: int | None) -> list[list[int]]:
    """The first `windows` stretches of a text that predict `tokens` tokens each; None: all that it has.

    Each is read alone and holds one token more, the first, which nothing predicts: the last of the stretch before. A
    text too short for one stretch is one. Raises Refused for a text of less than two tokens, or a stretch that this
    model cannot read at once.
    """
    if tokens + 1 >= llm.plan.max_len:
        raise Refused(
            f"windows of {tokens} tokens are asked for; this model can predict {llm.plan.max_len - 2} at once",
            param="tokens",
            hint=f"use --tokens {llm.plan.max_len - 2} or less",
        )
    ids = llm.intake.text_tokenizer.encode(text)
    if len(ids) < 2:
        raise Refused(f"{name} has {len(ids)} tokens; at least 2 are needed to predict one", param="text")
    found = [ids[start : start + tokens + 1] for start in range(0, len(ids) - 1, tokens)]
    whole = [window for window in found if len(window) == tokens + 1] or found[:1]
    return whole[:windows]


def measure(llm: LLM, text: str, name: str, tokens: int = 1024, windows: int | None = 1) -> Perplexity:
    """Perplexity over the first `windows` windows that predict `tokens` tokens each; see `windows_of`."""
    prompts = windows_of(llm, text, name, tokens, windows)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], ONLY_READ)
    return Perplexity.of(name, len(prompts), [logprob for output in outputs for logprob in _read(output)])


def _read(output: RequestOutput) -> list[float]:
    """The log-probability of each token of the prompt but the first."""
    table = output.prompt_logprobs or []
    pairs = zip(output.prompt_token_ids, table, strict=True)
    return [entry[token].logprob for token, entry in pairs if entry is not None]
