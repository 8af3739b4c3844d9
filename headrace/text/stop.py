"""Find stop strings in text that arrives in pieces, showing nothing that could still belong to one."""

from collections.abc import Sequence
from typing import cast

from headrace.base.errors import Refused


class StopStrings:
    """Watches a growing text for the first of several strings.

    The match is the one that is complete first; of those complete at the same character, the one that began
    first. That does not depend on how the text was cut into pieces. Without `include` the text ends before
    the stop string, with it right after.
    """

    def __init__(self, stops: Sequence[str] = (), include: bool = False):
        """Raises Refused when a stop string is empty or no string."""
        for stop in cast(Sequence[object], stops):  # callers pass on what users wrote
            if not isinstance(stop, str) or not stop:
                raise Refused(f"stop strings must be non-empty strings, not {stop!r}", param="stop")
        self.include = include
        self.matched: str | None = None
        self._stops = tuple(dict.fromkeys(stops))
        self._beginnings = {stop[:n] for stop in self._stops for n in range(1, len(stop))}
        self._longest = max(map(len, self._beginnings), default=0)
        self._held = ""

    def push(self, text: str, watch: bool = True) -> tuple[str, str | None]:
        """New text in; (text that may be shown, the stop string found or None) out.

        `watch=False` lets text through that cannot be part of a stop string (before `min_tokens`, say).
        After a match nothing more is shown.
        """
        if self.matched is not None:
            return "", self.matched
        text = self._held + text
        self._held = ""
        if not watch or not self._stops or not text:
            return text, None
        if (found := self._first(text)) is not None:
            start, self.matched = found
            return text[: start + len(self.matched) if self.include else start], self.matched
        keep = self._undecided(text)
        if keep:
            self._held = text[-keep:]
            return text[:-keep], None
        return text, None

    def flush(self) -> str:
        """What was held back, when the text has ended without a match."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> tuple[int, str] | None:
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if not found:
            return None
        _, at, stop = min(found)
        return at, stop

    def _undecided(self, text: str) -> int:
        """Length of the longest tail of `text` with which some stop string begins."""
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0
