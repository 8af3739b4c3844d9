"""When an engine is called stalled."""

from headrace.serve.vigil import PATIENCE, Vigil
from headrace.serve.wire import Pulse

LIMIT = 20.0


def watched(vigil: Vigil, work: bool, patient: bool, since: float, until: float, pulse=None) -> float | None:
    """Look four times a second; when a stall was seen first."""
    now = since
    while now <= until:
        if pulse is not None:
            vigil.beat(pulse(now), now)
        if vigil.look(work, patient, now) is not None:
            return now
        now += 0.25
    return None


def beating(step: int = 5, cpu: float = 0.0):
    """A pulse whose step stands still; `cpu` seconds of processor time per second."""
    return lambda now: Pulse(step, True, now * cpu, [])


def fresh() -> Vigil:
    vigil = Vigil(LIMIT)
    vigil.restart(0.0)
    return vigil


def test_no_step_while_there_is_work():
    found = watched(fresh(), True, False, 0.0, 100.0, beating())
    assert found is not None
    assert LIMIT < found < LIMIT + 1


def test_steps_that_end_are_progress_even_without_events():
    assert watched(fresh(), True, False, 0.0, 100.0, lambda now: Pulse(int(now), True, 0.0, [])) is None
    vigil = fresh()
    for second in range(100):
        vigil.advance(float(second))
        assert vigil.look(True, False, second + 0.25) is None


def test_without_work_only_silence_is_a_stall():
    assert watched(fresh(), False, False, 0.0, 100.0, beating()) is None
    found = watched(fresh(), False, False, 0.0, 100.0)
    assert found is not None
    assert found > LIMIT


def test_the_time_counts_from_when_work_came():
    vigil = fresh()
    assert watched(vigil, False, False, 0.0, 100.0, beating()) is None
    found = watched(vigil, True, False, 100.25, 200.0, beating())
    assert found is not None
    assert 100 + LIMIT < found < 102 + LIMIT


def test_a_step_that_computes_on_a_cpu_may_take_longer():
    found = watched(fresh(), True, True, 0.0, 1000.0, beating(cpu=1.0))
    assert found is not None
    assert PATIENCE * LIMIT < found < PATIENCE * LIMIT + 1
    idle = watched(fresh(), True, True, 0.0, 1000.0, beating(cpu=0.01))
    assert idle is not None
    assert idle < LIMIT + 1
    silent = watched(fresh(), True, True, 0.0, 1000.0)
    assert silent is not None
    assert silent < LIMIT + 1


def test_a_front_that_was_asleep_does_not_judge():
    vigil = fresh()
    assert watched(vigil, True, False, 0.0, 5.0, beating()) is None
    assert vigil.look(True, False, 500.0) is None
    found = watched(vigil, True, False, 500.25, 600.0, beating())
    assert found is not None
    assert 500 + LIMIT < found < 502 + LIMIT


def test_silence_is_noticed_soon():
    vigil = fresh()
    assert not vigil.silent(1.0)
    assert vigil.silent(3.0)
    vigil.hear(3.0)
    assert not vigil.silent(4.0)
