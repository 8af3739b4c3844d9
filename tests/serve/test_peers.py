"""Fronts that ask each other."""

import asyncio

import pytest

from headrace.serve import peers
from headrace.serve.peers import Peers
from headrace.serve.wire import Relay, decode_from_engine, encode


class Hub:
    """An engine that hands messages on, but to those that are `deaf`."""

    def __init__(self, count: int):
        self.up, self.deaf = True, set[int]()
        self.fronts = [Peers(n, count, lambda message, n=n: self.send(n, message)) for n in range(count)]

    def send(self, front: int, message: Relay) -> bool:
        for n, one in enumerate(self.fronts):
            if self.up and n != front and n not in self.deaf and message.to in (-1, n):
                one.hear(decode_from_engine(encode(message)))  # type: ignore[arg-type]
        return self.up


def test_everybody_else_is_asked_once():
    hub = Hub(3)
    for n, one in enumerate(hub.fronts):
        one.reply = lambda question, n=n: [n, question]
    assert asyncio.run(hub.fronts[1].ask(["rows"])) == [[0, ["rows"]], [2, ["rows"]]]
    assert asyncio.run(hub.fronts[1].ask("x")) == [[0, "x"], [2, "x"]]


def test_nothing_is_not_an_answer():
    assert asyncio.run(Hub(3).fronts[0].ask("x")) == []


def test_nobody_waits_for_the_dead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers, "PATIENCE", 0.01)
    hub = Hub(3)
    hub.deaf = {2}
    hub.fronts[0].reply = lambda question: "here"
    assert asyncio.run(hub.fronts[1].ask("x")) == ["here"]
    hub.fronts[1].hear(Relay(2, 1, 0, "too late"))  # and nothing happens


def test_without_others_or_an_engine_nobody_is_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers, "PATIENCE", 3600.0)
    assert asyncio.run(Hub(1).fronts[0].ask("x")) == []
    hub = Hub(2)
    hub.up = False
    assert asyncio.run(hub.fronts[0].ask("x")) == []
