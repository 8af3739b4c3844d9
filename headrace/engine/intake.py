"""From a prompt and SamplingParams to Requests the engine can run, or a refusal that says why."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any

import msgspec

from headrace.base.errors import Refused, TooLong
from headrace.engine import fields
from headrace.engine.grammar import Compiler
from headrace.engine.request import Request, SamplingParams, check_vocab
from headrace.engine.structured import Grammar, StructuredOutputsParams
from headrace.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, {"prompt": text} or {"prompt_token_ids": [...]}."""


_PRIORITY = fields.whole(-(1 << 63), (1 << 63) - 1, "a whole number")


class Intake:
    """Checks and tokenizes for one model. Torch-free, so that any process can do it.

    guarded         requests come from strangers, so that their grammars are tried in a process of their own
    max_logprobs    how many likely tokens per position a request may see; -1: any number
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        max_len: int,
        vocab: int,
        eos_ids: frozenset[int],
        *,
        guarded: bool = False,
        max_logprobs: int = 20,
    ):
        self.tokenizer, self.max_len, self.vocab = tokenizer, max_len, vocab
        # A tokenizer may know more tokens than the model.
        self.eos_ids = frozenset(id for id in eos_ids if id < vocab)
        self.max_logprobs = max_logprobs
        self.compiler = (
            Compiler(tokenizer, vocab, self.eos_ids, guarded=guarded) if tokenizer is not None else None
        )

    def ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. Raises Refused for one that is empty or not of a known form."""
        if isinstance(prompt, Mapping):
            if (given := prompt.get("prompt_token_ids")) is None and (given := prompt.get("prompt")) is None:
                raise Refused(
                    f"a prompt has keys {sorted(map(str, prompt))}; expected 'prompt' or 'prompt_token_ids'",
                    param="prompt",
                )
            return self.ids(given)
        if isinstance(prompt, str):
            ids = self._checked(self.encode(prompt))
        elif hasattr(prompt, "__getitem__") and not isinstance(prompt, bytes | bytearray):
            ids = self._checked(prompt)
        else:
            raise Refused(
                f"a prompt is of type {type(prompt).__name__}; expected text, token ids, or a mapping with one of them",
                param="prompt",
            )
        if not ids:
            raise Refused("the prompt is empty", param="prompt", hint="give at least one token of text")
        return ids

    def requests(
        self, id: str, prompt: Prompt, params: SamplingParams, *, salt: str = "", priority: int = 0
    ) -> list[Request]:
        """One request per answer wanted (`params.n`), ids `id`, or `id/0`, `id/1`...

        An answer that would pass the longest length is cut there. Raises Refused or TooLong. A grammar that has
        not been seen before may take seconds.
        """
        _check_salt(salt)
        ids = tuple(self.ids(prompt))
        room = self._room(len(ids))
        check_vocab(params, self.vocab, max_logprobs=self.max_logprobs)
        stop_ids = frozenset(params.stop_token_ids) | (
            frozenset[int]() if params.ignore_eos else self.eos_ids
        )
        grammar = None
        if params.structured_outputs is not None:
            grammar = self.grammar(params.structured_outputs)
            params = copy(params)  # `replace` would check all of it again
            msgspec.structs.force_setattr(params, "structured_outputs", None)
        request = Request(
            id=id,
            prompt=ids,
            params=params,
            grammar=grammar,
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            stop_ids=stop_ids,
            eos_ids=self.eos_ids,
            bad=self._bad(params),
            salt=salt,
            priority=_PRIORITY("priority", priority) or 0,
        )
        if params.n == 1:
            return [request]
        return [self._nth(request, i) for i in range(params.n)]

    def begin(self, several: Iterable[SamplingParams]) -> list[object]:
        """Have grammars compiled side by side. What is returned is to be kept until `requests` was called for each."""
        compiler = self.compiler
        wanted = {id(params): params.structured_outputs for params in several}
        return [compiler.begin(form) for form in wanted.values() if form is not None] if compiler else []

    def grammar(self, wanted: StructuredOutputsParams) -> Grammar:
        """What an answer must follow. Raises Refused for what cannot be followed."""
        if self.compiler is None:
            raise Refused(
                "this model has no tokenizer, so that no form can be asked of its text",
                param="structured_outputs",
                hint="give a tokenizer with --tokenizer",
            )
        return self.compiler.grammar(wanted)

    def _room(self, count: int) -> int:
        """Tokens that an answer to a prompt of `count` may have. Raises TooLong where that is none."""
        if count >= self.max_len:
            raise TooLong(
                f"this model's maximum context length is {self.max_len} tokens; the prompt has {count} and the"
                f" answer needs at least one",
                param="prompt",
            )
        return self.max_len - count

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Raises TooLong at once for one that is too long whatever its tokens are."""
        tokenizer = self.text_tokenizer
        if len(text) > 4 * self.max_len and (longest := tokenizer.longest) is not None:
            least = len(text) // longest
            if least >= self.max_len:  # tokenizing twenty megabytes takes most of a minute
                raise TooLong(
                    f"this model's maximum context length is {self.max_len} tokens; the prompt has at least {least}",
                    param="prompt",
                )
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)

    @property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises Refused where there is none."""
        if self.tokenizer is None:
            raise Refused(
                "this model has no tokenizer, so text cannot be read",
                param="prompt",
                hint="give token ids, or a tokenizer with --tokenizer",
            )
        return self.tokenizer

    def _nth(self, request: Request, i: int) -> Request:
        params = request.params
        if params.seed is not None and i:  # the first has the seed that was given, be it negative
            params = msgspec.structs.replace(params, seed=(params.seed + i) % 2**63)
        return msgspec.structs.replace(request, id=f"{request.id}/{i}", params=params)

    def _bad(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        if not params.bad_words:
            return ()
        tokenizer = self.text_tokenizer
        spelled = (ids for word in params.bad_words for ids in tokenizer.word_ids(word))
        return tuple(tuple(ids) for ids in spelled if max(ids) < self.vocab)

    def _checked(self, ids: Sequence[int]) -> list[int]:
        self._room(len(ids))  # before anybody looks at millions of them
        if set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < self.vocab:
            return list(ids)  # the usual case, without a step of Python per token
        for n, token in enumerate(ids):
            if type(token) is not int or not 0 <= token < self.vocab:
                raise Refused(
                    f"token {n} of the prompt is {token!r}; expected a whole number from 0 to {self.vocab - 1}",
                    param="prompt",
                )
        return list(ids)


def _check_salt(salt: object) -> None:
    """Blocks are named by its bytes."""
    if not isinstance(salt, str):
        raise Refused(f"cache_salt is {salt!r:.60}; expected text", param="cache_salt")
    try:
        salt.encode()
    except UnicodeEncodeError as error:
        raise Refused(
            "cache_salt has half of a surrogate pair; expected valid Unicode", param="cache_salt"
        ) from error
