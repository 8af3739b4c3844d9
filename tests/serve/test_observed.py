"""What the watchers see of a front process with an engine process behind it, also when that dies."""

import asyncio
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families as parse

from headrace.base.errors import Broken
from headrace.serve.auth import Door
from headrace.serve.frontend import Frontend
from headrace.serve.observe import Observers, Scrape, observe
from headrace.serve.settings import Serve
from tests.looped import looped
from tests.serve.scripted import ask, begun, expected, finish, held, running, stuck, until


def numbers(observers: Observers) -> dict[str, float]:
    """Every counter, and the count of every histogram, added up over its labels."""
    observers.metrics._page._made = -1e9
    found: dict[str, float] = {}
    for family in parse(observers.metrics.render().decode()):
        for sample in family.samples:
            if sample.name.endswith(("_total", "_count")):
                found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


@looped
async def test_counters_go_on_over_the_death_of_the_engine():
    async with running() as (front, supervisor):
        observers = observe(front, Serve(request_log="off"), "script")
        requests = [ask([n + 1, 2, 3], max_tokens=100) for n in range(4)]
        answers = [front.submit([request], kind="chat") for request in requests]
        await stuck(front)
        before = numbers(observers)
        assert before["vllm:generation_tokens_total"] == 10
        assert supervisor.engine is not None
        supervisor.engine.kill()
        await until(lambda: front.restarts == 1)
        results = await asyncio.gather(*map(finish, answers))
        assert [tokens for ((tokens, _),) in results] == [expected(request) for request in requests]
        await until(lambda: front.stats.running == 0)
        after = numbers(observers)
        assert {name for name, value in before.items() if after[name] < value} == set()
        assert after["headrace_engine_restarts_total"] == 1
        assert after["headrace_resumed_requests_total"] == 4
        assert after["vllm:generation_tokens_total"] == 400 + 2  # of the request that stopped the engine
        assert after["vllm:inter_token_latency_seconds_count"] == 396 + 1
        assert after["vllm:time_to_first_token_seconds_count"] == 4 + 1
        assert after["vllm:request_success_total"] == 4 + 1
        found = observers.history.find(requests[0].id)
        assert found["resumes"] == 1
        assert found["streams"][0]["tokens"] == 100


async def scraped(front: Frontend, observers: Observers) -> str:
    """The line of /metrics that says whether the front is ready."""
    scrape = Scrape(httpx.ASGITransport, front, observers, Door(Serve(), environ={}))  # type: ignore[arg-type]
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(scrape), base_url="http://localhost"
    ) as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    (line,) = [line for line in answer.text.splitlines() if line.startswith("headrace_ready{")]
    return line[-1]


@looped
async def test_metrics_are_there_from_the_first_moment_to_the_last(tmp_path: Path):
    gate = tmp_path / "gate"
    gate.touch()
    async with begun(words=held(gate)) as (front, _):
        observers = observe(front, Serve(request_log="off"), "script")
        assert await scraped(front, observers) == "0"
        gate.unlink()
        await front.until_ready()
        assert await scraped(front, observers) == "1"
        await front.drain()
        assert await scraped(front, observers) == "0"
    assert await scraped(front, observers) == "0"


@looped
async def test_a_front_that_fails_when_it_meets_the_engine_is_at_no_moment_ready(monkeypatch):
    said: list[bool] = []

    def broken(*_: object, **__: object) -> None:
        said.append(front.ready)
        raise RuntimeError("no intake")

    monkeypatch.setattr("headrace.serve.frontend.Intake", broken)
    async with begun() as (front, _):
        observers = observe(front, Serve(request_log="off"), "script")
        failed = asyncio.create_task(front.until_failed())
        while not failed.done():
            assert await scraped(front, observers) == "0"
            await asyncio.sleep(0)
        assert isinstance(failed.result(), Broken)
        assert said == [False]
