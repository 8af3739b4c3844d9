"""The engine process dies, stops, hangs or never starts; and nobody is left behind."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.base.errors import Broken, Refused
from headrace.serve.frontend import Frontend
from headrace.serve.supervisor import Supervisor
from tests.looped import gone, looped, state, wait_for
from tests.serve.scripted import ask, command, config, expected, finish, held, running, stuck, until


def kill(supervisor: Supervisor) -> None:
    assert supervisor.engine is not None
    supervisor.engine.kill()


@looped
async def test_sixty_four_streams_survive_the_death_of_the_engine():
    async with running(config(schedule__rows=65)) as (front, supervisor):
        requests = [ask([10, 11, i], 40, seed=i, temperature=float(i % 2)) for i in range(64)]
        answers = [front.submit([request]) for request in requests]
        results = [asyncio.create_task(finish(answer)) for answer in answers]
        for deaths in (1, 2):
            await stuck(front)
            kill(supervisor)
            await until(lambda n=deaths: front.restarts == n)
        for request, result in zip(requests, results, strict=True):
            assert await result == [(expected(request), "length")]
        assert front.restarts == 2
        assert {answer.resumes for answer in answers} == {2}


@looped
async def test_requests_that_come_while_the_engine_is_gone_are_served(tmp_path: Path):
    gate = tmp_path / "gate"
    async with running(words=held(gate)) as (front, supervisor):
        assert front.ready
        gate.touch()
        kill(supervisor)
        await until(lambda: front.restarts == 1)
        assert not front.ready
        request, left = ask([10, 11], 10), ask([10, 12], 10)
        answer, leaves = front.submit([request]), front.submit([left])
        leaves.cancel()
        assert await finish(leaves) == [([], "abort")]
        gate.unlink()
        assert await finish(answer) == [(expected(request), "length")]


@looped
async def test_an_engine_that_hangs_is_restarted(capfd, caplog):
    settings = config(serve__stall_seconds=0.8)
    async with running(settings, command(0.005)) as (front, supervisor):
        requests = [ask([10, 11, i], 100) for i in range(8)]
        answers = [front.submit([request]) for request in requests]
        await until(lambda: front.stats.generated >= 50)
        first = supervisor.engine
        culprit = front.submit([ask([7, 7, 1], 5)])
        await until(lambda: front.restarts)
        culprit.cancel()
        for request, answer in zip(requests, answers, strict=True):
            assert await finish(answer) == [(expected(request), "length")]
        await until(lambda: front.ready)
        assert supervisor.engine is not first
        assert first is not None
        assert first.poll() is not None
    said = capfd.readouterr().err
    assert "Thread 0x" in said, "where its threads were"
    assert "test-" in caplog.text, "what its step was made of"
    assert "while there is work" in caplog.text


@looped
async def test_the_request_that_kills_the_engine_is_found_and_the_others_end_well():
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


@looped
async def test_an_engine_that_keeps_dying_is_given_up():
    settings = config(serve__restarts=2, model__max_len=200_000)
    async with running(settings, command(0.001)) as (front, supervisor):
        answer = front.submit([ask([10], 100_000)])
        for deaths in (1, 2, 3):
            await until(lambda: front.ready)
            kill(supervisor)
            await until(lambda n=deaths: front.restarts == n)
        fault = await front.until_failed()
        assert isinstance(fault, Broken)
        assert "died 3 times" in fault.message
        assert "SIGKILL" in fault.message
        assert (await finish(answer))[0][1] == "error"
        assert answer.fault is fault
        with pytest.raises(Broken, match="died 3 times"):
            front.submit([ask([10])])


@looped
async def test_a_model_that_cannot_be_had_is_said_at_once():
    with pytest.raises(Refused, match="no such script"):
        async with running(config(model__path="missing")):
            pass


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


def test_an_engine_that_is_stopped_does_not_outlive_its_parent():
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=root, start_new_session=True
    )
    assert parent.stdout is not None
    said, folder = parent.stdout.readline().decode().split()
    engine = int(said)
    os.kill(engine, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        wait_for(lambda: gone(engine))
    except AssertionError:
        os.kill(engine, signal.SIGKILL)
        raise
    assert not Path(folder).exists()


@looped
async def test_a_second_front_process_shares_the_engine():
    settings = config(serve__workers=2)
    async with running(settings, command(0.005)) as (front, supervisor):
        second = Frontend(supervisor.folder, settings.serve, front=1)
        try:
            await second.until_ready()
            hanging = asyncio.create_task(stuck(second))
            await asyncio.sleep(0)
            requests = [ask([10, 11, i], 50) for i in range(20)]
            answers = [(front, second)[i % 2].submit([r]) for i, r in enumerate(requests)]
            await hanging
            kill(supervisor)
            await until(lambda: second.restarts == 1)
            for request, answer in zip(requests, answers, strict=True):
                assert await finish(answer) == [(expected(request), "length")]
                assert answer.resumes == 1
        finally:
            second.close()


@looped
async def test_an_engine_that_hangs_over_the_work_of_a_further_front_is_restarted():
    settings = config(serve__workers=2, serve__stall_seconds=0.8)
    async with running(settings, command(0.005)) as (front, supervisor):
        second = Frontend(supervisor.folder, settings.serve, front=1)
        try:
            await second.until_ready()
            await stuck(second)
            request = ask([10, 11], 50)
            answer = second.submit([request])
            await until(lambda: front.restarts)
            assert await finish(answer) == [(expected(request), "length")]
        finally:
            second.close()


@looped
async def test_nothing_is_said_of_an_engine_that_is_gone():
    """Or a front would tell for ever that requests run, if the next engine has nothing to do."""
    async with running(words=command(0.005)) as (front, supervisor):
        answer = front.submit([ask([10], 3000)])
        await until(lambda: front.stats.running and front.stats.kv_used)
        engine = supervisor.engine
        assert engine is not None
        engine.send_signal(signal.SIGSTOP)
        await until(lambda: state(engine.pid) == "T")
        answer.cancel()
        kill(supervisor)
        await until(lambda: front.restarts)
        assert (front.stats.running, front.stats.kv_used) == (0, 0)
        await until(lambda: front.ready)
        assert (front.stats.running, front.stats.kv_used) == (0, 0)


@looped
async def test_what_a_dead_front_had_is_ended_when_its_place_is_taken(monkeypatch):
    settings = config(serve__workers=2)
    async with running(settings, command(0.01)) as (front, supervisor):
        second = Frontend(supervisor.folder, settings.serve, front=1)
        await second.until_ready()
        second.submit([ask([10], 3000)])
        await until(lambda: front.stats.running == 1)
        second.connection.close()  # as if the process were gone
        monkeypatch.setattr("headrace.serve.connection.getpid", lambda: 99)
        monkeypatch.setattr("headrace.serve.frontend.getpid", lambda: 99)
        third = Frontend(supervisor.folder, settings.serve, front=1)
        try:
            await third.until_ready()
            await until(lambda: not front.stats.running)
            request = ask([10], 5)
            assert await finish(third.submit([request])) == [(expected(request), "length")]
        finally:
            third.close()
            second.close()
