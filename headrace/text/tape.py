"""Read text that arrives in pieces as if it were all there: a parser is a generator that yields to wait for more."""

import re
from bisect import bisect_left
from collections.abc import Callable, Generator
from functools import cached_property
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Reading: TypeAlias = Generator[None, None, T]
"""A parser under way: whoever drives it feeds the tape, or ends it, whenever it yields."""

Say = Callable[[str], object]
"""Takes text as it is read, piece by piece."""

SPACE = re.compile(r"[ \t\r\n]*")


class Marks:
    """Several strings to look for. None of them may lie within another, unless at its end."""

    def __init__(self, *marks: str):
        self._marks = marks
        self._sorted = sorted(marks)
        self._longest = max(map(len, marks), default=1) - 1

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Finds the first of them. Made when it is asked for: many long strings take a while."""
        return re.compile("|".join(map(re.escape, self._marks)) or r"(?!)")

    def undecided(self, text: str, start: int) -> int:
        """Length of the longest tail of text[start:] with which some mark begins."""
        marks = self._sorted
        for length in range(min(self._longest, len(text) - start), 0, -1):
            tail = text[-length:]
            at = bisect_left(marks, tail)  # those that begin with it stand together, from here on
            if at < len(marks) and marks[at].startswith(tail):
                return length
        return 0


class Tape:
    """Text, how far it has been read, and, if asked to keep it, what was read since.

    `count` is the number of characters read. Never looks further ahead than the longest string asked for, so what
    is unread stays short and the work for all of a text is proportional to its length, however it was cut.
    """

    def __init__(self) -> None:
        self.ended = False
        self.count = 0
        self._text = ""
        self._at = 0
        self._kept: list[str] | None = None

    def feed(self, text: str) -> None:
        """Append."""
        self._text = self._text[self._at :] + text
        self._at = 0

    def keep(self) -> None:
        """From here on remember what is read."""
        self._kept = []

    def forget(self) -> None:
        """Remember no more."""
        self._kept = None

    def kept(self) -> str:
        """What has been read since `keep`; it is forgotten then."""
        kept, self._kept = self._kept or [], None
        return "".join(kept)

    def take(self, count: int) -> str:
        """Read so many characters, which are known to be there."""
        return self._take(self._at + count)

    def rest(self) -> str:
        """Read whatever is there."""
        return self._take(len(self._text))

    def peek(self) -> Reading[str]:
        """The next character; "" at the end of the text."""
        while self._at == len(self._text):
            if self.ended:
                return ""
            yield
        return self._text[self._at]

    def ahead(self, count: int) -> Reading[str]:
        """The next `count` characters, or fewer at the end of the text."""
        while len(self._text) - self._at < count and not self.ended:
            yield
        return self._text[self._at : self._at + count]

    def begins(self, *options: str) -> Reading[str]:
        """The first of `options` that the text goes on with; "" if with none."""
        longest = max(map(len, options))
        while True:
            rest = self._text[self._at : self._at + longest]
            for option in options:
                if rest.startswith(option):
                    return option
            if self.ended or not any(option.startswith(rest) for option in options):
                return ""
            yield

    def accept(self, *options: str) -> Reading[str]:
        """As `begins`, and read it."""
        found = yield from self.begins(*options)
        self.take(len(found))
        return found

    def run(self, wanted: re.Pattern[str], say: Say | None = None) -> Reading[None]:
        """Read as far as `wanted`, a repeated character class, goes."""
        while (yield from self.peek()):
            found = wanted.match(self._text, self._at)
            end = found.end() if found else self._at
            if end > self._at:
                piece = self._take(end)
                if say is not None:
                    say(piece)
            if end < len(self._text):
                return

    def word(self, wanted: re.Pattern[str]) -> Reading[str]:
        """As `run`, giving what was read."""
        pieces: list[str] = []
        yield from self.run(wanted, pieces.append)
        return "".join(pieces)

    def until(self, marks: Marks, say: Say) -> Reading[str]:
        """Read up to the first of `marks`, and say which it is; "" if the text ended without."""
        while True:
            if found := marks.pattern.search(self._text, self._at):
                if found.start() > self._at:
                    say(self._take(found.start()))
                return found[0]
            held = 0 if self.ended else marks.undecided(self._text, self._at)
            if (end := len(self._text) - held) > self._at:
                say(self._take(end))
            if self.ended:
                return ""
            yield

    def _take(self, end: int) -> str:
        piece = self._text[self._at : end]
        self._at = end
        self.count += len(piece)
        if self._kept is not None:
            self._kept.append(piece)
        return piece
