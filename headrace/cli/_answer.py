"""One answer in a terminal: tokens as they come, Ctrl-C between steps, and how long it took."""

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING

from headrace.base.errors import Broken
from headrace.engine.request import SamplingParams

if TYPE_CHECKING:  # torch is loaded when a model is
    from headrace.api.llm import LLM

Write = Callable[[str], None]
_NUMBERS = count()


@dataclass(slots=True)
class Answer:
    """What came of a prompt. Times in seconds from the moment it was asked; `finish` "abort" after Ctrl-C."""

    prompt_tokens: int
    cached: int = 0
    tokens: int = 0
    text: str = ""
    first: float | None = None
    total: float = 0.0
    finish: str | None = None

    @property
    def rate(self) -> float:
        """Tokens per second once the first one is there; 0 where there is no second one."""
        after = self.total - self.first if self.first is not None else 0.0
        return (self.tokens - 1) / after if after > 0 and self.tokens > 1 else 0.0

    def line(self) -> str:
        """One line of statistics."""
        cached = f" ({self.cached} cached)" if self.cached else ""
        parts = [f"prompt {self.prompt_tokens} tokens{cached}"]
        if self.first is not None:
            parts.append(f"first token after {self.first:.2f} s")
        parts.append(f"{self.tokens} tokens" + (f" at {self.rate:.1f} tok/s" if self.rate else ""))
        return ", ".join([*parts, f"{self.total:.2f} s in all", f"ended by {self.finish}"])


class Interrupt:
    """While it is entered, Ctrl-C is a wish to be looked at (`asked`); the second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interrupt":
        self._before = signal.signal(signal.SIGINT, self._pressed)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def answer(llm: "LLM", prompt: Sequence[int], params: SamplingParams, write: Write) -> Answer:
    """Generate, writing each piece of text as it comes. Ctrl-C ends it; what was said until then is kept.

    Raises Refused or TooLong before anything runs, Broken where the engine fails.
    """
    (request,) = llm.intake.requests(f"answer-{next(_NUMBERS)}", {"prompt_token_ids": list(prompt)}, params)
    got = Answer(len(request.prompt))
    with Interrupt() as interrupt:
        began = perf_counter()
        stream = llm.local.submit(request)
        try:
            while not stream.finish and not interrupt.asked:
                for _, update in llm.local.step():
                    if update.token_ids and got.first is None:
                        got.first = perf_counter() - began
                    if update.text:
                        write(update.text)
        finally:
            rest = llm.local.cancel(request.id)
        if rest is not None and rest.text:
            write(rest.text)
        got.total = perf_counter() - began
    got.cached, got.tokens, got.text = stream.cached, len(stream.token_ids), stream.text
    got.finish = stream.finish
    if got.finish == "error":
        raise Broken("the request failed in the engine", hint="the log says why")
    return got


def write_out(text: str) -> None:
    """Text to standard output, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
