"""Find stop strings in text that arrives in pieces, showing nothing that could still belong to one."""

from collections.abc import Sequence

from headrace.text.tape import Marks


class StopStrings:
    """Watches a growing text for the first of several strings.

    The match is the one that is complete first; of those complete at the same character, the one that began
    first. That does not depend on how the text was cut into pieces. Without `include` the text ends before
    the stop string, with it right after.
    """

    def __init__(self, stops: Sequence[str], include: bool = False):
        """None of `stops` is empty."""
        self.include = include
        self.matched: str | None = None
        self._stops = tuple(dict.fromkeys(stops))
        self._marks = Marks(*self._stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """New text in; (text that may be shown, the stop string found or None) out. After a match nothing is shown."""
        if self.matched is not None:
            return "", self.matched
        text = self._held + text
        self._held = ""
        if (found := self._first(text)) is not None:
            start, self.matched = found
            return text[: start + len(self.matched) if self.include else start], self.matched
        shown = len(text) - self._marks.undecided(text, 0)
        self._held = text[shown:]
        return text[:shown], None

    def flush(self) -> str:
        """What was held back, when the text has ended without a match."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> tuple[int, str] | None:
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found)[1:] if found else None
