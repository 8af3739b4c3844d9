"""The watchers on a front, and how /metrics is answered."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families as parse

from headrace.serve.auth import Auth, Door
from headrace.serve.observe import Scrape, make_router, observe
from headrace.serve.settings import Serve
from tests.serve.test_debug import Front
from tests.serve.watched import FACTS


def ask(settings: Serve, method: str = "GET", path: str = "/metrics", key: str = "") -> httpx.Response:
    """One request to a server that has nothing but its watchers."""
    front, door = Front(), Door(settings, environ={})
    observers = observe(front, settings, "m")  # type: ignore[arg-type]
    observers.metrics.met(FACTS)
    app = FastAPI()
    app.include_router(make_router(front, observers))  # type: ignore[arg-type]
    whole = Scrape(Auth(app, door), front, observers, door)  # type: ignore[arg-type]
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(whole)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


def test_metrics_are_what_prometheus_expects():
    answer = ask(Serve(request_log="off"))
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    names = {family.name for family in parse(answer.text)}
    assert {
        "vllm:num_requests_waiting",
        "vllm:cache_config_info",
        "headrace_ready",
        "process_open_fds",
    } <= names


def test_the_fast_way_and_the_route_say_the_same():
    fast, route = ask(Serve(request_log="off")), ask(Serve(request_log="off"), "HEAD")
    assert fast.status_code == route.status_code == 200
    assert fast.headers["content-type"] == route.headers["content-type"]


@pytest.mark.parametrize(("key", "status"), [("", 401), ("wrong", 401), ("right", 200)])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_fast_way_has_the_same_door(method: str, key: str, status: int):
    assert ask(Serve(request_log="off", api_key="right"), method, key=key).status_code == status


@pytest.mark.parametrize(("form", "count"), [("off", 3), ("text", 4), ("json", 4)])
def test_the_request_log_is_a_choice(form: str, count: int):
    front = Front()
    observe(front, Serve(request_log=form), "m")  # type: ignore[arg-type]
    assert len(front.watchers) == count


def test_traces_are_sent_and_flushed():
    pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")
    front = Front()
    settings = Serve(request_log="off", traces="http://127.0.0.1:9/v1/traces")
    observers = observe(front, settings, "m")  # type: ignore[arg-type]
    assert observers.tracer in front.watchers
    observers.close()
