"""Work beside the thread that asks for it."""

import gc
import threading
import weakref
from time import sleep

import pytest

from headrace.engine.beside import Beside


def test_work_has_begun_when_start_returns_and_is_done_after_wait():
    beside, told, go = Beside(), list[str](), threading.Event()

    def work() -> None:
        told.append("begun")
        go.wait(10)
        told.append("done")

    for _ in range(3):
        told.clear()
        go.clear()
        beside.start(work)
        assert beside.busy
        sleep(0.01)
        assert told == ["begun"]
        go.set()
        beside.wait()
        assert told == ["begun", "done"]
        assert not beside.busy


def test_whoever_waits_gets_the_fault_and_the_next_work_is_done():
    beside, told = Beside(), list[int]()

    def fail() -> None:
        raise ValueError("bad work")

    beside.start(fail)
    with pytest.raises(ValueError, match="bad work"):
        beside.wait()
    assert not beside.busy
    beside.start(lambda: told.append(1))
    beside.wait()
    assert told == [1]


def test_its_thread_ends_with_it_and_holds_nothing_meanwhile():
    class Held:
        pass

    held, gone, beside = Held(), threading.Event(), Beside()
    weakref.finalize(held, gone.set)
    beside.start(lambda held=held: None)
    beside.wait()
    del held
    gc.collect()
    assert gone.wait(5), "the thread keeps what its last work held"
    thread = beside._thread
    assert thread is not None
    assert thread.is_alive()
    del beside
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
