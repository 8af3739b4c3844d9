"""What crosses the border of the engine: requests on the way in, events on the way out."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from headrace.base.errors import Refused
from headrace.base.params import Named
from headrace.engine import fields
from headrace.engine.structured import Grammar, StructuredOutputsParams

COLDEST = 0.01
"""Lowest temperature above 0; smaller ones are raised to it, because logits divided by them overflow."""
STRONGEST = 1e4
"""Repetition penalties above it, or below its inverse, become these: logits times larger ones overflow, too."""

MOST_BAD_WORDS = 128
MOST_STOPS = 64
MOST_ANSWERS = 16384


class SamplingParams(msgspec.Struct, metaclass=Named, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens and when to stop. Raises Refused on construction, its `param` naming the field.

    n                    answers wanted; more than 1 needs a temperature above 0
    presence_penalty     subtracted from the logit of every token generated before, -2 to 2
    frequency_penalty    the same once per occurrence, -2 to 2
    repetition_penalty   divides positive and multiplies negative logits of tokens in prompt or answer, > 0
    temperature          0 (always the likeliest token) to 2
    top_p                sample from the likeliest tokens that together have this much probability, 0 to 1
    top_k                sample from this many likeliest tokens; 0 or -1: all. Equal logits stay together
    min_p                drop tokens less probable than this times the likeliest one, 0 to 1
    seed                 the same seed gives the same tokens, whatever else runs; None or -1: a new one
    stop                 up to 64 strings that end the answer; needs `detokenize`
    stop_token_ids       tokens that end the answer
    bad_words            up to 128 strings that the answer never completes
    include_stop_str_in_output   keep the stop string in the text
    ignore_eos           go on after the end-of-sequence token
    max_tokens           longest answer; None: up to the model's context
    min_tokens           no end-of-sequence or stop token before this many
    logprobs             log-probabilities per token: its own and this many likeliest; -1: of all tokens
    prompt_logprobs      the same for the prompt's tokens
    detokenize           produce text
    skip_special_tokens  leave special tokens out of the text
    shown_token_ids      special tokens that stay in the text where the others are left out
    spaces_between_special_tokens   taken for vLLM's sake; without effect, as there with these tokenizers
    logit_bias           token id -> number added to its logit, -100 to 100
    allowed_token_ids    the only tokens that may be generated
    structured_outputs   the form that the answer must have
    guided_decoding      the older name of structured_outputs
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    bad_words: Sequence[str] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    shown_token_ids: Sequence[int] = ()
    spaces_between_special_tokens: bool = True
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    guided_decoding: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        for name, default in _DEFAULTS.items():
            if (given := getattr(self, name)) is not default:
                msgspec.structs.force_setattr(self, name, _FIELDS[name](name, given))
        if self.guided_decoding is not None:
            if self.structured_outputs is not None:
                raise Refused(
                    "guided_decoding is the older name of structured_outputs", param="guided_decoding"
                )
            msgspec.structs.force_setattr(self, "structured_outputs", self.guided_decoding)
            msgspec.structs.force_setattr(self, "guided_decoding", None)
        if 0 < self.temperature < COLDEST:
            msgspec.structs.force_setattr(self, "temperature", COLDEST)
        penalty = min(max(self.repetition_penalty, 1 / STRONGEST), STRONGEST)
        msgspec.structs.force_setattr(self, "repetition_penalty", penalty)
        if self.n > 1 and self.temperature == 0:
            raise Refused(
                f"n is {self.n} with temperature 0; expected n = 1, because every answer would be the same",
                param="n",
                hint="set a temperature above 0 or n=1",
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise Refused(
                f"min_tokens is {self.min_tokens}; expected at most max_tokens, which is {self.max_tokens}",
                param="min_tokens",
                hint="raise max_tokens or lower min_tokens",
            )
        if self.stop and not self.detokenize:
            raise Refused(
                "stop strings are given with detokenize=False; expected text to look for them in",
                param="stop",
                hint="leave detokenize on, or use stop_token_ids",
            )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0 or self.top_k == 1


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt and all that is asked of the engine for it. Raises Refused where nothing could be generated.

    max_tokens  resolved: how many tokens the answer may have in this model
    stop_ids    tokens that end the answer, from the model and the params
    bad         token sequences that must not be completed
    salt        requests with different salts share no cached prefix
    priority    lower runs earlier
    grammar     what the answer must follow, made of params.structured_outputs, which is None then
    emitted     tokens of the answer that were generated before, where an engine that is gone had begun it:
                the answer goes on behind them as if it had never been interrupted
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams = msgspec.field(default_factory=SamplingParams)
    max_tokens: int = 16
    stop_ids: frozenset[int] = frozenset()
    eos_ids: frozenset[int] = frozenset()
    bad: tuple[tuple[int, ...], ...] = ()
    salt: str = ""
    priority: int = 0
    grammar: Grammar | None = None
    emitted: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "prompt", tuple(self.prompt))
        msgspec.structs.force_setattr(self, "emitted", tuple(self.emitted))
        if not self.prompt:
            raise Refused(
                "the prompt is empty; expected at least one token", param="prompt", hint="give some text"
            )
        if self.max_tokens < 1:
            raise Refused(f"max_tokens is {self.max_tokens}; expected at least 1", param="max_tokens")
        if len(self.emitted) >= self.max_tokens:
            raise Refused(
                f"{len(self.emitted)} tokens were generated before, max_tokens is {self.max_tokens}; expected fewer",
                param="emitted",
            )
        self._check_choice()

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest possible answer together."""
        return len(self.prompt) + self.max_tokens

    @property
    def cacheable(self) -> bool:
        """Whether its prompt may come from the prefix cache: not if the prompt's own logits are wanted."""
        return self.params.prompt_logprobs is None

    def _check_choice(self) -> None:
        """Something must be left to choose from at every position."""
        if self.params.allowed_token_ids is None:
            return
        left = set(self.params.allowed_token_ids) - {word[0] for word in self.bad if len(word) == 1}
        if not left:
            raise Refused(
                "bad_words forbids every token of allowed_token_ids; expected one that may be generated",
                param="allowed_token_ids",
                hint="allow more tokens or forbid fewer",
            )
        if self.params.min_tokens and left <= self.stop_ids:
            raise Refused(
                f"allowed_token_ids has only tokens that end the answer, and min_tokens is"
                f" {self.params.min_tokens}; expected a token that may come before the end",
                param="allowed_token_ids",
                hint="allow more tokens, or set min_tokens=0",
            )


class Logprobs(NamedTuple):
    """A token's log-probability under the model alone (no temperature, no penalties), and its rivals.

    rank  1 for the likeliest token        top  (token id, log-probability), likeliest first
    """

    logprob: float
    rank: int
    top: list[tuple[int, float]]


PromptLogprobs = list[Logprobs]
"""For consecutive tokens of a prompt; its first token has none."""


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Something that happened to a request: a token, its end, or both.

    finish  None, "stop", "length", "abort" or "error"      stop    the token id that ended it
    cached  tokens of the prompt that came from the prefix cache
    scheduled   on a request's first event: when it was first part of a step, in monotonic seconds
    evictions   how often its blocks were taken away so far
    """

    id: str
    token: int | None
    finish: str | None = None
    stop: int | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: PromptLogprobs | None = None
    cached: int = 0
    scheduled: float | None = None
    evictions: int = 0


def check_vocab(params: SamplingParams, vocab: int, *, max_logprobs: int = 20) -> None:
    """Raise Refused for token ids outside the vocabulary, or more log-probabilities than the engine gives.

    `max_logprobs` -1: no limit.
    """
    for name, ids in (
        ("logit_bias", params.logit_bias or ()),
        ("allowed_token_ids", params.allowed_token_ids or ()),
        ("stop_token_ids", params.stop_token_ids),
    ):
        _check_ids(name, ids, vocab)
    for name, count in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
        if count is None or max_logprobs < 0:
            continue
        if count < 0 or count > max_logprobs:
            what = f"-1 (all {vocab})" if count < 0 else str(count)
            raise Refused(
                f"{name} is {what}; expected at most {max_logprobs}",
                param=name,
                hint=f"ask for {max_logprobs}",
            )


def _check_ids(name: str, ids: Iterable[int], vocab: int) -> None:
    outside = [i for i in ids if not 0 <= i < vocab]
    if outside:
        shown = ", ".join(map(str, outside[:5])) + ("..." if len(outside) > 5 else "")
        raise Refused(
            f"{name} has token ids that the model does not know: {shown}; expected 0 to {vocab - 1}",
            param=name,
            hint="token ids come from this model's own tokenizer",
        )


_COUNT = "a whole number, 0 or more, or -1 for the whole vocabulary"
_FIELDS: dict[str, Callable[[str, object], object]] = {
    "n": fields.whole(1, MOST_ANSWERS, f"a whole number from 1 to {MOST_ANSWERS}"),
    "presence_penalty": fields.real(-2, 2),
    "frequency_penalty": fields.real(-2, 2),
    "repetition_penalty": fields.real(0, math.inf, above=True, hint="1.0 is no penalty"),
    "temperature": fields.real(
        0, 2, hint="0 always takes the likeliest token, 1 samples from the model as it is"
    ),
    "top_p": fields.real(0, 1, above=True, hint="1.0 keeps every token"),
    "top_k": fields.whole(-1, None, "a whole number, 1 or more, or 0 or -1 to keep every token"),
    "min_p": fields.real(0, 1),
    "seed": fields.seed,
    "stop": fields.strings(MOST_STOPS),
    "stop_token_ids": fields.ids(),
    "shown_token_ids": fields.ids(),
    "bad_words": fields.strings(MOST_BAD_WORDS),
    "max_tokens": fields.whole(1, None, "a whole number, 1 or more", optional=True),
    "min_tokens": fields.whole(0, None, "a whole number, 0 or more"),
    "logprobs": fields.whole(-1, None, _COUNT, optional=True),
    "prompt_logprobs": fields.whole(-1, None, _COUNT, optional=True),
    "logit_bias": fields.bias,
    "allowed_token_ids": fields.ids(optional=True),
    "structured_outputs": fields.structured,
    "guided_decoding": fields.structured,
    "include_stop_str_in_output": fields.switch,
    "ignore_eos": fields.switch,
    "detokenize": fields.switch,
    "skip_special_tokens": fields.switch,
    "spaces_between_special_tokens": fields.switch,
}
_DEFAULTS = dict(zip(SamplingParams.__struct_fields__, SamplingParams.__struct_defaults__, strict=True))
