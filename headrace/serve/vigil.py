"""Whether the engine gets on with its work: from what it says and when, no clock of its own."""

from headrace.serve.wire import Pulse

SILENCE = 2.0
"""Seconds without a word after which an engine is not called ready; its pulse beats four times a second."""

PATIENCE = 10
"""A step that is seen to compute on a CPU may take so many times as long: a large one does."""


class Vigil:
    """Told of every message and of the time, it says when there is a stall.

    limit   seconds without a step's end, while there is work, that are a stall
    """

    def __init__(self, limit: float):
        self.limit = limit
        self.pulse = Pulse(0, False, 0.0, [])
        self._progress: float | None = None  # when a step last ended, or work came
        self._heard = 0.0
        self._looked: float | None = None
        self._idle_cpu = 0.0

    def restart(self, now: float) -> None:
        """A new engine, or one that has just become ready."""
        self._progress, self._heard = None, now
        self.pulse = Pulse(0, False, 0.0, [])

    def hear(self, now: float) -> None:
        """It said something: the process lives."""
        self._heard = now

    def advance(self, now: float) -> None:
        """A step ended."""
        self._heard = self._progress = now

    def beat(self, pulse: Pulse, now: float) -> None:
        """Its pulse came."""
        if pulse.step != self.pulse.step:
            self._progress = now
            self._idle_cpu = pulse.cpu
        self.pulse, self._heard = pulse, now

    def silent(self, now: float) -> bool:
        return now - self._heard > SILENCE

    def look(self, work: bool, patient: bool, now: float) -> str | None:
        """Why this is a stall, if it is one. `patient`: steps run on a CPU, where computing takes its time.

        To be called a few times a second; if this process itself did not run meanwhile, judgement is put off.
        """
        late = self._looked is not None and now - self._looked > 1.0
        self._looked = now
        if not work:
            self._progress = None
            if now - self._heard > self.limit and not late:
                return f"it has not been heard of for {now - self._heard:.1f} s"
            return None
        if self._progress is None or late:
            self._progress = now
        still = now - self._progress
        if still <= self.limit:
            return None
        computing = self.pulse.cpu - self._idle_cpu > still / 2 and not self.silent(now)
        if patient and computing and still <= PATIENCE * self.limit:
            return None
        return f"no step has ended for {still:.1f} s while there is work"
