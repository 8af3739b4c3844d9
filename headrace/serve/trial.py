"""Finds the request that kills the engine: those that were there each time go on one after another."""

from collections.abc import Iterable

SUSPECT = 2
"""Deaths of engines that had begun a request after which it goes on only by itself among the suspects."""

GUILTY = 2
"""Deaths while it was the only suspect, after which a request is not tried again."""


class Trial:
    """Who may go on at once after the engine died, and who must wait until another suspect has proved harmless."""

    def __init__(self) -> None:
        self.deaths: dict[str, int] = {}
        self.strikes: dict[str, int] = {}
        self.suspects: list[str] = []
        self.on_trial: str | None = None

    def mourn(self, begun: Iterable[str]) -> str | None:
        """The engine died and had begun these. The one that is found guilty, if any."""
        tried, self.on_trial = self.on_trial, None
        if tried is not None:
            self.strikes[tried] = self.strikes.get(tried, 0) + 1
            if self.strikes[tried] >= GUILTY:
                return tried
            return None  # whoever else was there is under no suspicion
        for id in begun:
            self.deaths[id] = self.deaths.get(id, 0) + 1
        return None

    def release(self, ids: Iterable[str]) -> list[str]:
        """Those of `ids` that go on at once, now that there is an engine again; the suspects' first is among them."""
        ids = list(ids)
        self.suspects = [id for id in ids if self.deaths.get(id, 0) >= SUSPECT]
        self.suspects.sort(key=lambda id: -self.strikes.get(id, 0))
        free = [id for id in ids if self.deaths.get(id, 0) < SUSPECT]
        return free + self.next()

    def next(self) -> list[str]:
        """The next suspect, if there is one."""
        self.on_trial = self.suspects.pop(0) if self.suspects else None
        return [] if self.on_trial is None else [self.on_trial]

    def acquit(self, id: str) -> list[str]:
        """A request has got on, so it is harmless; who goes on now."""
        self.deaths.pop(id, None)
        self.strikes.pop(id, None)
        return self.next() if id == self.on_trial else []

    def forget(self, id: str) -> list[str]:
        """A request has ended; who goes on now."""
        if id in self.suspects:
            self.suspects.remove(id)
        return self.acquit(id)
