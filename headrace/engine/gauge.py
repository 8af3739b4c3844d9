"""Compiles grammars by llguidance within limits; a stranger's in a process of its own first, which may be given up."""

import faulthandler
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from threading import Lock, Timer
from time import thread_time
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.base.errors import Broken, Fault, Refused, Unreachable

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

SECONDS = 2.0
"""The longest that a stranger's grammar may take to compile."""
MEGABYTES = 4096
"""Address space of the process that tries it."""
START = 30.0
"""The longest that this process may take to start, which is to import packages and to read the vocabulary."""
SLACK = 3.0
"""Seconds beyond SECONDS after which it is killed from outside: it was stopped, and cannot end itself."""
OWN_ENDS = (1, -signal.SIGABRT, -signal.SIGSEGV)
"""Exit codes that are due to the grammar: the time limit's, and those of a lack of memory or of stack."""
MASK_SECONDS = 0.05
"""The longest that one mask may take."""
LOOKS = 3
"""Tokens that are tried on a new grammar, to find out early that it is too ambiguous."""

LIMITS = {
    "max_items_in_row": 5_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 30_000,
    "max_lexer_states": 100_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""Of llguidance: what a grammar, and one mask of it, may cost. They do not bound the time to compile."""

SLICES = (r"[\x20\x0A\x0D\x09]+", *(rf'[^"\\\x00-\x1F\x7F]{times}' for times in (
    "{1,3}", "{1,5}", "{1,7}", "{1,10}", "{1,15}", "{1,30}", "+")))  # fmt: skip
"""Kinds of tokens whose masks are made once: white space, and what stands in JSON strings, by length. More lengths
than llguidance has by itself: where a string may have 12 more characters, few tokens are left to look at."""


def library() -> Any:
    """The llguidance package, which nothing else here imports. Raises Broken where it is not installed."""
    try:
        import llguidance
    except ImportError as error:
        raise Broken(
            "structured output needs the package llguidance, which is not installed",
            hint="pip install llguidance",
        ) from error
    return llguidance


def read_vocabulary(words: str, vocab: int, ends: Sequence[int]) -> "LLTokenizer":
    """From the tokenizers library's JSON text; takes part of a second. Raises Refused for what cannot be read."""
    try:
        return library().LLTokenizer(words, n_vocab=vocab, eos_token=list(ends) or None, slices=list(SLICES))
    except ValueError as error:
        raise Refused(
            f"structured output is not possible with this model's tokenizer: {error}",
            param="structured_outputs",
        ) from error


def compiled(source: str, words: "LLTokenizer") -> "LLMatcher":
    """A matcher at the beginning of a text. Raises Refused with llguidance's reason."""
    llguidance = library()
    limits = llguidance.LLParserLimits(**LIMITS)
    matcher = llguidance.LLMatcher(words, source, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # what it finds out about the beginning, its copies need not find out again
    if matcher.is_error():
        raise refused(matcher.get_error())
    return matcher


def look_ahead(matcher: "LLMatcher", words: "LLTokenizer") -> None:
    """Raise Refused if the first masks take too long, or are too much for llguidance."""
    ahead = matcher.deep_copy()
    for _ in range(LOOKS):
        began = thread_time()
        mask = ahead.compute_bitmask()
        if ahead.is_error():
            raise refused(ahead.get_error())
        if thread_time() - began > MASK_SECONDS:
            raise refused("it is too ambiguous: finding out which tokens may come takes too long")
        allowed = bits_of(np.frombuffer(mask, np.uint8))
        token = next((int(id) for id in allowed if id not in words.eos_tokens), None)
        if token is None or ahead.is_stopped():
            break
        ahead.consume_token(token)


def bits_of(mask: np.ndarray) -> np.ndarray:
    """The ids that a mask allows."""
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def refused(reason: str) -> Refused:
    """A grammar is not taken for this reason, of which llguidance may have said more than people want to read."""
    lines = [line.strip() for line in reason.partition("\n<state>")[0].splitlines()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    said = " ".join(told or (line for line in lines if line.strip("^ ")))
    if "coerce_one_of" in said:  # a setting of llguidance's that nobody here can reach
        said = "oneOf has alternatives that may overlap; use anyOf"
    return Refused(f"structured_outputs cannot be followed: {said[:400]}", param="structured_outputs")


class Gauge:
    """Says what is wrong with grammars for one vocabulary. The process is started when first needed.

    `words` gives the tokenizers library's JSON text. Grammars are tried one after the other.
    """

    def __init__(self, words: Callable[[], str], vocab: int, ends: Sequence[int]):
        self._words, self._vocab, self._ends = words, vocab, tuple(ends)
        self._child: subprocess.Popen[str] | None = None
        self._lock = Lock()

    def check(self, source: str) -> None:
        """Raise Refused if something is wrong with it, Unreachable if that cannot be found out now.

        Takes SECONDS at most, and what it takes to start. Where the process is ended from outside it is tried once
        more; where it is stopped, that is found out after SECONDS + SLACK, or START.
        """
        with self._lock:
            said = self._ask(source)
            if said is None:
                said = self._ask(source)
        if said is None:
            raise Unreachable(
                "the form of the answer could not be tried: the process that tries forms was ended from outside",
                hint="ask again in a moment",
            )
        if said:
            raise Refused(said, param="structured_outputs")

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _ask(self, source: str) -> str | None:
        """What is wrong with it, "" if nothing; None if the process ended for another reason than this grammar."""
        if (said := self._start()) != "":
            return said
        said = self._exchange(source, SECONDS + SLACK)
        if said is None:
            assert self._child is not None
            if self._child.wait() in OWN_ENDS:
                most = f"{SECONDS:g} seconds or {MEGABYTES} MiB"
                said = refused(f"it takes more than {most} to compile").message
            self.close()
        return said

    def _start(self) -> str | None:
        """As `_ask`, about the vocabulary, where there is no process yet."""
        if self._child is not None and self._child.poll() is None:
            return ""
        self.close()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "headrace.engine.gauge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        settings = {"words": self._words(), "vocab": self._vocab, "ends": self._ends, "seconds": SECONDS}
        if (said := self._exchange(settings, START)) != "":
            self.close()
        return said

    def _exchange(self, message: object, seconds: float) -> str | None:
        """What the process says to a message; None if it ends, which it does after so many seconds."""
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        timer = Timer(seconds, child.kill)
        timer.daemon = True
        timer.start()
        try:
            child.stdin.write(json.dumps(message) + "\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        return json.loads(answer) if answer.endswith("\n") else None


def main() -> None:
    """The process: a vocabulary on the first line, then grammars; it says what is wrong with each, "" if nothing.

    A thread of faulthandler ends it while llguidance computes, which nothing in Python could.
    """
    _limit_memory()
    settings = json.loads(sys.stdin.readline())
    try:
        words = read_vocabulary(settings["words"], settings["vocab"], settings["ends"])
    except Fault as fault:
        return _say(fault.message)
    _say("")
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        for line in sys.stdin:
            faulthandler.dump_traceback_later(settings["seconds"], exit=True, file=nowhere)
            try:
                look_ahead(compiled(json.loads(line), words), words)
                said = ""
            except Refused as fault:
                said = fault.message
            faulthandler.cancel_dump_traceback_later()
            _say(said)


def _say(text: str) -> None:
    sys.stdout.write(json.dumps(text) + "\n")
    sys.stdout.flush()


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))


if __name__ == "__main__":
    main()
