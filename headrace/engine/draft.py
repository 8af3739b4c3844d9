"""Guesses the next tokens of a request from its own text, so that one step can check several: prompt lookup.

Where the latest tokens have occurred before, what followed them then is guessed to follow again (Saxena 2023, prompt
lookup decoding). A guess costs time only: the model says what is kept of it.
"""

from collections.abc import Sequence

from headrace.engine.request import Request

SIZES = (3, 2)
"""How many of the latest tokens must have occurred before for a guess; the larger number is believed first."""

SPARE = 16
"""So many more tokens make a step take twice as long as one of a single token: measured, decision 016."""

FIRST = 2
"""What the first token of a row's guess costs besides, in tokens: the row is no longer one of a single token."""

CHANCES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""How often a guessed token is right, until it is known, by how many agreed before it: 2, 3, 4, up to 8, 16, more."""

PACE = 1 / 16
"""How far one token moves what is believed about them."""


def may_draft(request: Request) -> bool:
    """Whether several of its tokens may be drawn in one step.

    Not where the sampler or a grammar keeps count of what was generated.
    """
    params = request.params
    counts = params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
    return not counts and request.grammar is None and all(len(word) == 1 for word in request.bad)


class Drafter:
    """What one request's guesses are made of, and how often they come true: a function of its tokens alone.

    It guesses at every token of the answer, asked or not, so that it costs nothing to know what guesses are worth.

    places    tokens that follow each other -> the position behind where they did so last
    seen      how many tokens were entered there
    at        the next token is guessed to be the one at this position; 0: no guess
    agreed    how many tokens before `at` are known to equal the latest ones
    chances   how often such a guess is right, by `_grade(agreed)`
    """

    __slots__ = ("agreed", "at", "chances", "places", "seen")

    def __init__(self) -> None:
        self.places: dict[tuple[int, ...], int] = {}
        self.seen = self.at = self.agreed = 0
        self.chances = list(CHANCES)

    def draft(self, tokens: Sequence[int], most: int, rows: int) -> list[int]:
        """Up to `most` tokens that may follow these, for a step of so many rows; none where that would not pay.

        `tokens` are those of the call before, and what came since.
        """
        self._follow(tokens)
        if not self.at or not (count := self._worth(most, rows)):
            return []
        found = list(tokens[self.at : self.at + count])
        return (found * count)[:count]  # where it runs into the present, the text goes round in circles

    def _follow(self, tokens: Sequence[int]) -> None:
        """Enter what is new, and see which guesses came true."""
        begun = self.seen > 0
        for end in range(self.seen, len(tokens)):
            if self.at:
                self._judge(tokens[self.at] == tokens[end])
            for size in SIZES:
                if size <= end:
                    self.places[tuple(tokens[end - size : end])] = end
            if begun and not self.at:
                self._find(tokens, end + 1)
        self.seen = len(tokens)
        if not begun:
            self._find(tokens, len(tokens))

    def _judge(self, right: bool) -> None:
        grade = _grade(self.agreed)
        self.chances[grade] += (right - self.chances[grade]) * PACE
        self.at, self.agreed = (self.at + 1, self.agreed + 1) if right else (0, 0)

    def _find(self, tokens: Sequence[int], end: int) -> None:
        """Where the tokens before `end` have stood before."""
        for size in SIZES:
            if (at := self.places.get(tuple(tokens[max(0, end - size) : end]))) is not None:
                self.at, self.agreed = at, size
                return

    def _worth(self, most: int, rows: int) -> int:
        """How many tokens to guess: as many as win the most, less the time they cost all rows, in tokens."""
        price = rows / (rows + SPARE)
        won, best, count = -FIRST * price, 0.0, 0
        chance = 1.0
        for n in range(most):
            chance *= self.chances[_grade(self.agreed + n)]
            won += chance - price
            if won > best:
                best, count = won, n + 1
        return count


def _grade(agreed: int) -> int:
    """The place in CHANCES for a guess before which so many tokens agreed."""
    return agreed - 2 if agreed < 5 else min((agreed - 1).bit_length(), 5)
