"""The engine process dies, stops, hangs or never starts; and nobody is left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from headrace.base.errors import Broken, Refused
from headrace.serve.frontend import Frontend
from headrace.serve.supervisor import Supervisor
from tests.serve.scripted import ask, command, config, expected, finish, running


def go(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 120))


def kill(supervisor: Supervisor, number: signal.Signals = signal.SIGKILL) -> int:
    assert supervisor.engine is not None
    os.kill(supervisor.engine.pid, number)
    return supervisor.engine.pid


async def lost(front: Frontend, deaths: int) -> None:
    """Until the front has noticed that so many engines are gone."""
    while front.restarts < deaths:
        await asyncio.sleep(0.001)


async def back(front: Frontend) -> None:
    """Until it is ready (again)."""
    while not front.ready:
        await asyncio.sleep(0.001)


def test_sixty_four_streams_survive_the_death_of_the_engine():
    async def work() -> None:
        async with running(words=command(0.005)) as (front, supervisor):
            requests = [ask([10, 11, i], 150, seed=i, temperature=float(i % 2)) for i in range(64)]
            answers = [front.submit([request]) for request in requests]
            results = [asyncio.create_task(finish(answer)) for answer in answers]
            for deaths in (1, 2):
                await asyncio.sleep(0.2)
                kill(supervisor)
                await lost(front, deaths)
                await back(front)
            for request, result in zip(requests, results, strict=True):
                assert await result == [(expected(request), "length")]
            assert front.restarts == 2
            assert {answer.resumes for answer in answers} == {2}

    go(work())


def test_requests_that_come_while_the_engine_is_gone_are_served():
    async def work() -> None:
        async with running(words=command(0.001, load_seconds=0.3)) as (front, supervisor):
            assert front.ready
            kill(supervisor)
            await lost(front, 1)
            assert not front.ready
            request, left = ask([10, 11], 10), ask([10, 12], 10)
            answer, leaves = front.submit([request]), front.submit([left])
            leaves.cancel()
            assert await finish(leaves) == [([], "abort")]
            assert await finish(answer) == [(expected(request), "length")]

    go(work())


@pytest.mark.parametrize("how", ["stopped", "hangs"])
def test_a_stalled_engine_is_restarted(how: str, capfd, caplog):
    async def work() -> None:
        settings = config(serve__stall_seconds=0.8)
        async with running(settings, command(0.005)) as (front, supervisor):
            requests = [ask([10, 11, i], 100) for i in range(8)]
            answers = [front.submit([request]) for request in requests]
            while front.stats.generated < 50:
                await asyncio.sleep(0.01)
            first = supervisor.engine
            if how == "stopped":
                kill(supervisor, signal.SIGSTOP)
            else:
                culprit = front.submit([ask([7, 7, 1], 5)])
            began = time.monotonic()
            await lost(front, 1)
            assert not front.ready
            assert time.monotonic() - began > 0.4
            if how == "hangs":
                culprit.cancel()
            for request, answer in zip(requests, answers, strict=True):
                assert await finish(answer) == [(expected(request), "length")]
            assert front.ready
            assert front.restarts == 1
            assert supervisor.engine is not first
            assert first is not None
            assert first.poll() is not None

    go(work())
    said = capfd.readouterr().err
    assert "Thread 0x" in said, "where its threads were"
    assert "test-" in caplog.text, "what its step was made of"
    assert "while there is work" in caplog.text


def test_the_request_that_kills_the_engine_is_found_and_the_others_end_well():
    async def work() -> None:
        async with running(words=command(0.005)) as (front, supervisor):
            requests = [ask([10, 11, i], 60) for i in range(16)]
            answers = [front.submit([request]) for request in requests]
            guilty = front.submit([ask([7, 7, 2], 60)])
            ((tokens, end),) = await finish(guilty)
            assert end == "error"
            assert tokens == expected(ask([7, 7, 2], 2))
            assert isinstance(guilty.fault, Broken)
            for request, answer in zip(requests, answers, strict=True):
                assert await finish(answer) == [(expected(request), "length")]
            assert supervisor.number == 4

    go(work())


def test_an_engine_that_keeps_dying_is_given_up():
    async def work() -> None:
        settings = config(serve__restarts=2, model__max_len=200_000)
        async with running(settings, command(0.001)) as (front, supervisor):
            answer = front.submit([ask([10], 100_000)])
            for deaths in (1, 2, 3):
                await back(front)
                kill(supervisor)
                await lost(front, deaths)
            fault = await front.until_failed()
            assert isinstance(fault, Broken)
            assert "died 3 times" in fault.message
            assert "SIGKILL" in fault.message
            assert (await finish(answer))[0][1] == "error"
            assert answer.fault is fault
            with pytest.raises(Broken, match="died 3 times"):
                front.submit([ask([10])])

    go(work())


def test_a_model_that_cannot_be_had_is_said_at_once():
    async def work() -> None:
        with pytest.raises(Refused, match="no such script"):
            async with running(config(model__path="missing")):
                pass

    go(work())


def test_the_folder_is_private_and_removed():
    async def work() -> None:
        async with running() as (_, supervisor):
            folder = supervisor.folder
            assert folder.stat().st_mode & 0o777 == 0o700
        assert not folder.exists()

    go(work())


PARENT = """
import asyncio, os, sys
from tests.serve.scripted import running, ask, command, config

async def main():
    async with running(words=command(0.01)) as (front, supervisor):
        answer = front.submit([ask([10], 3000)])
        await answer.next()
        print(supervisor.engine.pid, supervisor.folder, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_the_engine_does_not_outlive_its_parent(stopped: bool):
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=root, start_new_session=True
    )
    assert parent.stdout is not None
    said, folder = parent.stdout.readline().decode().split()
    engine = int(said)
    if stopped:
        os.kill(engine, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(500):
        try:
            if Path(f"/proc/{engine}/stat").read_text().split()[2] == "Z":
                break
        except FileNotFoundError:
            break
        time.sleep(0.01)
    else:
        os.kill(engine, signal.SIGKILL)
        pytest.fail("the engine still runs")
    assert not Path(folder).exists()


def test_a_second_front_process_shares_the_engine():
    async def work() -> None:
        settings = config(serve__workers=2)
        async with running(settings, command(0.005)) as (front, supervisor):
            second = Frontend(supervisor.folder, settings.serve, front=1)
            try:
                await second.until_ready()
                requests = [ask([10, 11, i], 50) for i in range(20)]
                answers = [(front, second)[i % 2].submit([r]) for i, r in enumerate(requests)]
                while second.stats.generated < 100:
                    await asyncio.sleep(0.01)
                kill(supervisor)
                await lost(second, 1)
                for request, answer in zip(requests, answers, strict=True):
                    assert await finish(answer) == [(expected(request), "length")]
                    assert answer.resumes == 1
            finally:
                second.close()

    go(work())


def test_what_a_dead_front_had_is_ended_when_its_place_is_taken(monkeypatch):
    async def work() -> None:
        settings = config(serve__workers=2)
        async with running(settings, command(0.01)) as (front, supervisor):
            second = Frontend(supervisor.folder, settings.serve, front=1)
            await second.until_ready()
            second.submit([ask([10], 3000)])
            while front.stats.running != 1:
                await asyncio.sleep(0.01)
            second.connection.close()  # as if the process were gone
            monkeypatch.setattr("headrace.serve.connection.getpid", lambda: 99)
            monkeypatch.setattr("headrace.serve.frontend.getpid", lambda: 99)
            third = Frontend(supervisor.folder, settings.serve, front=1)
            try:
                await third.until_ready()
                while front.stats.running:
                    await asyncio.sleep(0.01)
                request = ask([10], 5)
                assert await finish(third.submit([request])) == [(expected(request), "length")]
            finally:
                third.close()
                second.close()

    go(work())
