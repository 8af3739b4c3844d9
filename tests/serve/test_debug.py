"""The live feed and the timelines."""

import asyncio
import json
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from headrace.base.errors import Refused
from headrace.serve import debug, debug_routes, errors
from headrace.serve.answer import Answer
from headrace.serve.debug import History, Live
from headrace.serve.metrics import Metrics
from headrace.serve.peers import Peers
from headrace.serve.record import Watcher
from headrace.serve.vigil import Vigil
from headrace.serve.wire import Loading, Stats
from tests.serve.watched import FACTS, answer, finish, token


class Front:
    """As much of a front process as is asked here."""

    def __init__(self):
        self.ready, self.draining, self.restarts, self.front = True, False, 0, 0
        self.watchers: list[Watcher] = []
        self.stats = Stats(running=1, waiting=2, kv_used=0.25, step_rows=1, step_tokens=1, step_seconds=0.01)
        self.answers: dict[str, Answer] = {}
        self.connection, self.facts = (
            SimpleNamespace(up=True, loading=Loading("ready", 1.0), vigil=Vigil(20)),
            FACTS,
        )
        self.peers = Peers(0, 1, lambda message: False)


class Server:
    """Watchers around a front that is played by the test."""

    def __init__(self):
        self.front, self.metrics = Front(), Metrics("m")
        self.history = History(self.metrics, kept=3)
        self.live = Live(self.metrics, self.front)  # type: ignore[arg-type]
        self.metrics.met(FACTS)

    def submit(self, id: str, **how: object) -> Answer:
        one = answer(id, **how)  # type: ignore[arg-type]
        self.front.answers[id] = one
        self.metrics.submitted(one)
        return one

    def token(self, to: Answer) -> None:
        token(self.metrics, to, cached=16)

    def finish(self, one: Answer, cause: str = "stop") -> None:
        finish(one, cause, self.history, self.metrics)
        del self.front.answers[one.id]


@pytest.fixture
def server(clock: list[float]) -> Server:
    return Server()


def test_a_snapshot_has_every_field_that_is_laid_down(server: Server):
    server.submit("a")
    text = (debug.__doc__ or "").partition("    {")[2].partition('"more"')[0]
    named = {word.split('"')[0] for word in text.split('"')[1::2]}
    said = server.live.snapshot()

    def keys(of: object) -> set[str]:
        if isinstance(of, dict):
            return set(of) | {key for value in of.values() for key in keys(value)}
        return {key for item in of for key in keys(item)} if isinstance(of, list) else set()

    assert keys(said) - {"more"} <= named
    assert {"time", "rows", "latency", "tokens_per_second", "prefix", "kv"} <= keys(said)
    json.dumps(said)


def test_the_last_seconds_are_told_and_nothing_older(server: Server, clock: list[float]):
    server.live.snapshot()
    one = server.submit("a")
    clock[0] += 0.1
    one.scheduled = one.first = clock[0]
    server.token(one)
    for _ in range(10):
        clock[0] += 0.02
        server.token(one)
    said = server.live.snapshot()
    assert said["latency"]["ttft"]["count"] == 1
    assert said["latency"]["ttft"]["p50"] == pytest.approx(0.1, rel=0.08)
    assert said["latency"]["itl"]["count"] == 10
    assert said["latency"]["itl"]["p99"] == pytest.approx(0.02, rel=0.08)
    assert said["tokens_per_second"]["generated"] == pytest.approx(11 / 0.3)
    assert said["requests"]["running"] == 1
    assert said["kv"] == {"blocks": 512, "used": 128, "usage": 0.25, "block": 16}
    clock[0] += 100
    server.live.snapshot()
    clock[0] += 1
    late = server.live.snapshot()
    assert late["latency"]["ttft"] == {"count": 0, "p50": None, "p90": None, "p99": None}
    assert late["tokens_per_second"]["generated"] == 0


def test_the_prefix_cache_is_told_by_its_hits(server: Server, clock: list[float]):
    assert server.live.snapshot()["prefix"] == {"lookups": 0, "hits": 0, "rate": None}
    clock[0] += 1
    server.metrics.measured(Stats(steps=1, prompt_tokens=100, cached_tokens=25))
    assert server.live.snapshot()["prefix"] == {"lookups": 100, "hits": 25, "rate": 0.25}


def test_a_row_says_how_far_a_request_is(server: Server, clock: list[float]):
    one = server.submit("a", name="nightly", prompt=40)

    def state() -> object:
        return server.live.snapshot()["rows"][0]["state"]

    assert state() == "waiting"
    clock[0] += 0.5
    one.scheduled = clock[0]
    assert state() == "prefill"
    one.first = clock[0] = clock[0] + 0.5
    server.token(one)
    clock[0] += 1
    (row,) = server.live.snapshot()["rows"]
    assert row == {
        "id": "a",
        "name": "nightly",
        "kind": "chat",
        "state": "decode",
        "age": 2.0,
        "queue": 0.5,
        "ttft": 1.0,
        "prompt_tokens": 40,
        "cached_tokens": 16,
        "generated": 1,
        "max_tokens": 100,
        "tokens_per_second": 1.0,
    }


def test_rows_have_an_end(server: Server):
    for n in range(debug.SHOWN + 7):
        server.submit(f"r{n}")
    said = server.live.snapshot()
    assert (len(said["rows"]), said["more"]) == (debug.SHOWN, 7)
    assert said["rows"][0]["id"] == "r0", "the oldest first"


def test_outcomes_are_told_by_kind(server: Server):
    for id, cause in (("a", "stop"), ("b", "length"), ("c", "abort"), ("d", "error"), ("e", "timeout")):
        server.finish(server.submit(id), cause)
    server.metrics.refused("chat", Refused("no"), "x")
    requests = server.live.snapshot()["requests"]
    assert requests == {"running": 1, "waiting": 2, "finished": 2, "cancelled": 1, "failed": 2, "refused": 1}


def test_a_timeline_is_kept_after_the_end(server: Server, clock: list[float]):
    one = server.submit("a")
    clock[0] += 0.25
    one.scheduled = clock[0]
    for gap in (0.25, 0.125, 1.0, 0.125):
        clock[0] += gap
        one.first = one.first or clock[0]
        one.last = clock[0]
        server.token(one)
    running = server.history.find("a")
    assert [moment["what"] for moment in running["timeline"]] == [
        "submitted",
        "scheduled",
        "first token",
        "last token",
    ]
    server.finish(one, "length")
    found = server.history.find("a")
    assert found["state"] == "ended"
    assert found["timeline"] == [
        {"what": "submitted", "at": 0.0},
        {"what": "scheduled", "at": 0.25},
        {"what": "first token", "at": 0.5},
        {"what": "last token", "at": 1.75},
        {"what": "length", "at": 1.75},
    ]
    assert found["streams"] == [
        {"first": 0.5, "last": 1.75, "tokens": 4, "longest_gap": 1.0, "longest_gap_before_token": 3}
    ]


def test_only_the_last_are_kept(server: Server):
    for n in range(10):
        server.finish(server.submit(f"r{n}"))
        server.history.refused("chat", Refused("no"), f"x{n}")
    assert list(server.history.ended_ones) == ["r7", "r8", "r9"]
    assert [one["id"] for one in server.history.refusals] == ["x7", "x8", "x9"]
    assert server.metrics.open == {}
    assert server.history.find("r1") is None


def test_a_name_that_is_used_again_is_among_the_latest(server: Server):
    for id in ("a", "b", "a", "c"):
        server.finish(server.submit(id))
    assert [one["id"] for one in server.history.latest(2)["ended"]] == ["c", "a"]


def ask(server: Server, method: str, path: str, **more: object) -> httpx.Response:
    """One request to the routes."""

    async def send() -> httpx.Response:
        app = FastAPI()
        errors.install(app)
        app.include_router(debug_routes.make_router(server.live, server.history))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            return await client.request(method, path, **more)  # type: ignore[arg-type]

    return asyncio.run(send())


def test_routes(server: Server):
    one = server.submit("cmpl-1/x")
    assert ask(server, "GET", "/debug/live").json()["rows"][0]["id"] == "cmpl-1/x"
    assert ask(server, "GET", "/debug/requests/cmpl-1/x").json()["state"] == "waiting"
    state = ask(server, "GET", "/debug/state").json()
    assert (state["engine"]["kv_blocks"], state["stats"]["waiting"], state["ready"]) == (512, 2, True)
    assert state["loading"] is None
    cancelled: list[str] = []
    one.canceller = lambda _, finish, __: cancelled.append(finish)
    assert ask(server, "POST", "/debug/requests/cmpl-1/x/cancel").json() == {
        "id": "cmpl-1/x",
        "cancelled": True,
    }
    assert cancelled == ["abort"]
    server.finish(one, "abort")
    listed = ask(server, "GET", "/debug/requests").json()
    assert [found["id"] for found in listed["ended"]] == ["cmpl-1/x"]
    for method, path in (("GET", "/debug/requests/no"), ("POST", "/debug/requests/cmpl-1/x/cancel")):
        refused = ask(server, method, path)
        assert (refused.status_code, refused.json()["error"]["param"]) == (404, "id")


def test_the_feed_goes_on_until_the_server_drains(server: Server):
    async def frames() -> list[bytes]:
        found: list[bytes] = []
        async for frame in debug_routes.Desk(server.live, server.history).frames(0.001):
            found.append(frame)
            server.front.draining = len(found) == 3
        return found

    found = asyncio.run(frames())
    assert len(found) == 3
    assert all(frame.startswith(b"data: {") and frame.endswith(b"}\n\n") for frame in found)
    server.front.draining = True
    streamed = ask(server, "GET", "/debug/live?every=5", headers={"Accept": "text/event-stream"})
    assert streamed.headers["content-type"].startswith("text/event-stream")


def test_a_front_adds_what_the_others_know(server: Server):
    """Two more fronts: one has a long list, one is silent about single requests."""
    server.submit("mine")
    rows = [{"id": f"r{n}", "age": 1.0 + n} for n in range(debug.SHOWN)]
    ended = [{"id": "older", "time": 1.0}, {"id": "later", "time": 2e9}]
    known = {
        "rows": [[rows, 3], [[], 0]],
        "requests": [{"running": rows[:1], "ended": ended, "refused": []}],
        "find": [{"id": "theirs"}],
        "cancel": [True],
    }

    async def asked(question: list[str]) -> list[object]:
        return known[question[0]] if question[-1] != "nobody's" else []

    server.front.peers.ask = asked  # type: ignore[method-assign,assignment]
    live = ask(server, "GET", "/debug/live").json()
    assert (len(live["rows"]), live["more"]) == (debug.SHOWN, 4)
    assert [row["id"] for row in live["rows"][:2]] == ["r199", "r198"], "the oldest first"
    listed = ask(server, "GET", "/debug/requests?limit=1").json()
    assert [row["id"] for row in listed["running"]] == ["r0", "mine"]
    assert [found["id"] for found in listed["ended"]] == ["later"]
    assert ask(server, "GET", "/debug/requests/theirs").json() == {"id": "theirs"}
    assert ask(server, "GET", "/debug/requests/mine").json()["id"] == "mine"
    assert ask(server, "POST", "/debug/requests/theirs/cancel").json() == {"id": "theirs", "cancelled": True}
    assert ask(server, "POST", "/debug/requests/nobody's/cancel").status_code == 404


def test_a_front_tells_the_others_what_it_knows(server: Server):
    one = server.submit("mine")
    one.canceller = lambda _, finish, __: server.finish(one, finish)
    debug_routes.Desk(server.live, server.history)
    said = server.front.peers.reply
    (row,), more = said(["rows"])
    assert (row["id"], more) == ("mine", 0)
    assert said(["find", "mine"])["state"] == "waiting"
    assert said(["cancel", "theirs"]) is None
    assert said(["cancel", "mine"]) is True
    assert [found["cause"] for found in said(["requests", 10])["ended"]] == ["abort"]
    assert said(["what"]) is None
