"""How well a model predicts a text, through the engine that serves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace.api.llm import LLM
from headrace.api.outputs import RequestOutput
from headrace.base.errors import Refused
from headrace.bench.estimate import Estimate, Values, blocks, exponential
from headrace.bench.texts import cut
from headrace.engine.request import SamplingParams

ONLY_READ = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp of the mean negative log-likelihood per token.

    windows  token ids of each, the first of which nothing predicts
    losses   of each predicted token of each window, in nats
    """

    text: str
    windows: Sequence[Sequence[int]]
    losses: Sequence[Values]

    @property
    def tokens(self) -> int:
        """Predicted ones."""
        return sum(map(len, self.losses))

    @property
    def estimate(self) -> Estimate:
        """With its standard error; see bench.estimate."""
        return exponential([blocks(self.losses)])

    def over(self, base: "Perplexity") -> Estimate:
        """This perplexity divided by another model's of the same windows, token by token: its error is that of pairs.

        Raises Refused where the two read different tokens.
        """
        if self.windows != base.windows:
            raise Refused(
                f"{self.text}: the models have different tokenizers; their perplexities cannot be compared",
                param="model",
                hint="measure each alone",
            )
        pairs = zip(self.losses, base.losses, strict=True)
        return exponential([blocks([mine - theirs for mine, theirs in pairs])])


def measure(llm: LLM, text: str, name: str, tokens: int = 1024, windows: int | None = 1) -> Perplexity:
    """Perplexity over the first `windows` windows that predict `tokens` tokens each; see `texts.cut`."""
    prompts = cut(llm.intake.text_tokenizer, text, name, tokens, windows, llm.plan.max_len - 2)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], ONLY_READ)
    return Perplexity(name, prompts, [-np.array(read_logprobs(output)) for output in outputs])


def read_logprobs(output: RequestOutput) -> list[float]:
    """The log-probability of each token of the prompt but the first."""
    table = output.prompt_logprobs or []
    pairs = zip(output.prompt_token_ids, table, strict=True)
    return [entry[token].logprob for token, entry in pairs if entry is not None]
