"""What one request's tokens mean: its text so far, stop strings, and how it ended."""

from array import array
from bisect import bisect_left

import msgspec

from headrace.engine.request import Event, Logprobs, PromptLogprobs, Request
from headrace.text.detokenize import Detokenizer
from headrace.text.speech import Speech
from headrace.text.stop import StopStrings
from headrace.text.tokenizer import Tokenizer

MOST_KEPT = 16
"""Tokens whose text is made at once where nobody waits for it, in a small part of the time; few are left to the end."""


class Update(msgspec.Struct, frozen=True, gc=False):
    """What one event adds. `finish` is set in exactly one update, the last.

    `stop` is the stop string or token id that ended it; `cancel` says that the engine does not know yet.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: Logprobs | None = None
    finish: str | None = None
    stop: int | str | None = None
    cancel: bool = False


class Stream:
    """The receiving end of one request. `tokenizer` None gives token ids and no text.

    `ends` says how long the text was after each token; `listener` reads the text to tell thoughts from answers.
    `whole`: nobody reads before the end, so that most tokens may be left to `keep`; there are no `ends` then.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer | None, whole: bool = False):
        params = request.params
        self.request = request
        self.text = ""
        self.token_ids: list[int] = []
        self.ends = array("Q")
        self.listener: Speech | None = None
        self._heard = 0
        self.logprobs: list[Logprobs] = []
        self.prompt_logprobs: PromptLogprobs = []
        self.cached = 0
        self.finish: str | None = None
        self.stop: int | str | None = None
        self.whole = whole and not params.stop
        self._kept = 0  # the last tokens, whose text is not made yet
        self._pieces: Detokenizer | None = None
        self._stops: StopStrings | None = None
        if tokenizer is not None and params.detokenize:
            skip, shown = params.skip_special_tokens, params.shown_token_ids
            self._pieces = Detokenizer(tokenizer, request.prompt, skip, shown)
            if params.stop:
                self._stops = StopStrings(params.stop, include=params.include_stop_str_in_output)

    def keep(self, event: Event) -> bool:
        """Add an event that is no more than the next token, for a `whole` stream. Whether it is; else `take` it."""
        if event.finish or event.logprobs or event.prompt_logprobs or self.finish or not self.token_ids:
            return False
        if (token := event.token) is None:
            return False
        self.token_ids.append(token)
        self._kept += 1
        if self._kept == MOST_KEPT:
            self.text += self._kept_text()
        return True

    def take(self, event: Event) -> Update:
        """Add an event. Anything that comes after the end is ignored."""
        if self.finish:
            return Update()
        if event.prompt_logprobs:
            self.prompt_logprobs += event.prompt_logprobs
        text, matched, ids = self._kept_text(), None, ()
        if event.token is not None:
            if not self.token_ids:  # what is found after an eviction is no merit of the cache
                self.cached = event.cached
            ids = (event.token,)
            self.token_ids.append(event.token)
            if event.logprobs is not None:
                self.logprobs.append(event.logprobs)
            more, matched = self._text(event)
            text += more
        finish, stop = event.finish, event.stop
        if finish and matched is None:
            more, matched = self._rest()
            text += more
        if matched is not None and finish not in ("abort", "error"):
            finish, stop = "stop", matched
        self.text += text
        if ids and not self.whole:
            self.ends.append(len(self.text))
        self.finish, self.stop = finish, stop
        return Update(
            text, ids, event.logprobs, finish, stop, cancel=matched is not None and not event.finish
        )

    def thoughts(self) -> int:
        """How many of the tokens are thoughts, for the reader in `listener`. Reads no text twice."""
        speech = self.listener
        if speech is None:
            return 0
        if speech.thought_end is None:
            speech.push(self.text[self._heard :])
            self._heard = len(self.text)
        end = speech.thought_end
        if end is None:
            return len(self.token_ids) if speech.thinking else 0
        return min(bisect_left(self.ends, end) + 1, len(self.ends)) if end else 0

    def _kept_text(self) -> str:
        kept, self._kept = self._kept, 0
        return self._pieces.push(self.token_ids[-kept:]) if kept and self._pieces is not None else ""

    def _text(self, event: Event) -> tuple[str, str | None]:
        params = self.request.params
        if self._pieces is None or event.token is None:
            return "", None
        if event.finish == "stop" and not params.include_stop_str_in_output:
            return "", None  # the token that stopped it is not part of the answer
        text = self._pieces.push((event.token,))
        if self._stops is None or len(self.token_ids) < params.min_tokens:
            return text, None
        return self._stops.push(text)

    def _rest(self) -> tuple[str, str | None]:
        """What was held back in case a character or a stop string went on."""
        if self._pieces is None:
            return "", None
        text = self._pieces.finish()
        if self._stops is None:
            return text, None
        text, matched = self._stops.push(text)
        return text + self._stops.flush(), matched
