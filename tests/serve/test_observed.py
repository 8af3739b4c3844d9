"""What the watchers see of a front process with an engine process behind it, also when that dies."""

import asyncio
import os
import signal
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families as parse

from headrace.serve.observe import Observers, observe
from headrace.serve.settings import Serve
from tests.serve.scripted import ask, expected, finish, running


def numbers(observers: Observers) -> dict[str, float]:
    """Every counter, and the count of every histogram, added up over its labels."""
    observers.metrics._page._made = -1e9
    found: dict[str, float] = {}
    for family in parse(observers.metrics.render().decode()):
        for sample in family.samples:
            if sample.name.endswith(("_total", "_count")):
                found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)


def test_counters_go_on_over_the_death_of_the_engine():
    async def run() -> None:
        async with running() as (front, supervisor):
            observers = observe(front, Serve(request_log="off"), "script")
            requests = [ask([n + 1, 2, 3], max_tokens=150) for n in range(4)]
            answers = [front.submit([request], kind="chat") for request in requests]
            await until(lambda: all(len(answer.streams[0].token_ids) > 10 for answer in answers))
            await until(lambda: numbers(observers)["headrace_steps_total"] > 10)
            before = numbers(observers)
            observers.metrics.ask(front)
            assert observers.live.snapshot()["requests"]["running"] == 4
            assert supervisor.engine is not None
            os.kill(supervisor.engine.pid, signal.SIGKILL)
            results = await asyncio.gather(*map(finish, answers))
            assert [tokens for ((tokens, _),) in results] == [expected(request) for request in requests]
            await until(lambda: front.stats.running == 0)
            observers.metrics.ask(front)
            after = numbers(observers)
            assert {name for name, value in before.items() if after[name] < value} == set()
            assert after["headrace_engine_restarts_total"] == 1
            assert after["headrace_resumed_requests_total"] == 4
            assert after["vllm:generation_tokens_total"] == 600
            assert after["vllm:inter_token_latency_seconds_count"] == 596
            assert after["vllm:time_to_first_token_seconds_count"] == 4
            assert after["vllm:request_success_total"] == 4
            found = observers.history.find(requests[0].id)
            assert found["resumes"] == 1
            assert found["streams"][0]["tokens"] == 150

    asyncio.run(run())
