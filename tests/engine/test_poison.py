"""A request that raises inside a step ends alone; the others get what they would have got."""

from pathlib import Path
from typing import Any

import pytest

from headrace.engine.engine import Engine
from headrace.engine.request import Event, SamplingParams
from headrace.engine.scheduler import Row
from headrace.engine.start import start
from tests import tiny
from tests.engine.test_engine import ask, assert_idle, drain, tokens_of

KINDS = ("start", "wait", "commit")
"""Where a step may raise: when it is started, waited for, or its tokens are taken."""


class Poisoned:
    """Has the engine fail whenever a step reaches past position `at` of a request called poison..."""

    def __init__(self, engine: Engine, kind: str, at: int, monkeypatch: pytest.MonkeyPatch):
        self.kind, self.at, self.failures, self.attempts = kind, at, 0, 0
        run, commit = engine.runner.run, engine.scheduler.commit

        def start(step: list[Row]) -> Any:
            if kind == "start":
                self.check(step)
            pending = run(step)

            def wait() -> Any:
                if kind == "wait":
                    self.check(step)
                return pending()

            return wait

        def take(step: list[Row], *rest: Any) -> list[Event]:
            if kind == "commit":
                self.check(step)
            return commit(step, *rest)

        monkeypatch.setattr(engine.runner, "run", start)
        monkeypatch.setattr(engine.scheduler, "commit", take)

    def check(self, step: list[Row]) -> None:
        self.attempts += 1
        if any(row.seq.request.id.startswith("poison") and row.stop > self.at for row in step):
            self.failures += 1
            raise RuntimeError("poison")


def prompts(count: int) -> list[list[int]]:
    return [[5 + i, 9, 12 + 3 * i] * (1 + i % 4) for i in range(count)]


@pytest.mark.parametrize("overlap", ["on", "off"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_a_poison_request_ends_alone(family: str, kind: str, overlap: str, request, monkeypatch):
    folder: Path = request.getfixturevalue(f"{family}_folder")
    engine = start(tiny.config(folder, **{"schedule.overlap": overlap, "max_num_batched_tokens": 200})).engine
    poisoned = Poisoned(engine, kind, at=8, monkeypatch=monkeypatch)
    model = tiny.decoder(folder)
    for i, prompt in enumerate(prompts(7)):
        engine.add(ask(i, prompt))
    engine.add(ask("poison", [7, 7, 7, 7]))
    events = drain(engine)
    found = tokens_of(events)
    ends = {event.id: event.finish for event in events if event.finish}
    assert ends == {**{str(i): "length" for i in range(7)}, "poison": "error"}
    for i, prompt in enumerate(prompts(7)):
        assert len(found[str(i)]) == 12
        tiny.assert_greedy(model, prompt, found[str(i)])
    assert 3 < len(found["poison"]) <= 5, "what it had made until then was told"
    tiny.assert_greedy(model, [7] * 4, found["poison"])
    assert 1 < poisoned.failures <= 4, "eight requests are halved three times"
    assert engine.faults == poisoned.failures
    assert_idle(engine)
    engine.scheduler.pool.check()


@pytest.mark.parametrize("overlap", ["on", "off"])
@pytest.mark.parametrize("kind", KINDS)
def test_several_poisons_while_requests_come_and_go(llama_folder: Path, kind: str, overlap: str, monkeypatch):
    settings = {"num_gpu_blocks_override": 40, "block_size": 4, "schedule.overlap": overlap}
    engine = start(tiny.config(llama_folder, **settings)).engine
    Poisoned(engine, kind, at=6, monkeypatch=monkeypatch)
    model = tiny.decoder(llama_folder)
    events: list[Event] = []
    for i, prompt in enumerate(prompts(20)):
        engine.add(ask(i, prompt))
        if i % 4 == 0:
            engine.add(ask(f"poison{i}", prompt[:5]))
        events += engine.step()
    events += engine.step()
    if (event := engine.cancel("19")) is not None:
        events.append(event)
    events += drain(engine)
    found = tokens_of(events)
    ends = {event.id: event.finish for event in events if event.finish}
    assert ends.pop("19") == "abort"
    assert all(finish == ("error" if id.startswith("poison") else "length") for id, finish in ends.items())
    assert len(ends) == 24
    for i, prompt in enumerate(prompts(19)):
        tiny.assert_greedy(model, prompt, found[str(i)])
        assert len(found[str(i)]) == 12
    assert_idle(engine)
    engine.scheduler.pool.check()


def test_seeds_and_penalties_are_not_disturbed(llama_folder: Path, monkeypatch):
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=15, presence_penalty=1.0, min_tokens=4)
    calm = start(tiny.config(llama_folder)).engine
    calm.add(ask("a", [5, 6, 7], params))
    expected = tokens_of(drain(calm))["a"]
    engine = start(tiny.config(llama_folder)).engine
    Poisoned(engine, "wait", at=7, monkeypatch=monkeypatch)
    for id, prompt in (("a", [5, 6, 7]), ("poison", [9, 9, 9])):
        engine.add(ask(id, prompt, params))
    assert tokens_of(drain(engine))["a"] == expected


def test_when_every_request_fails_each_is_told(llama_folder: Path, monkeypatch):
    engine = start(tiny.config(llama_folder)).engine
    Poisoned(engine, "start", at=0, monkeypatch=monkeypatch)
    for i in range(5):
        engine.add(ask(f"poison{i}", [5, i + 3]))
    assert {event.id: event.finish for event in drain(engine)} == {f"poison{i}": "error" for i in range(5)}
    assert_idle(engine)


def test_a_device_beyond_repair_fails_whoever_asks(llama_folder: Path, monkeypatch):
    engine = start(tiny.config(llama_folder)).engine
    Poisoned(engine, "start", at=0, monkeypatch=monkeypatch)

    def gone() -> None:
        raise OSError("the device is gone")

    monkeypatch.setattr(engine.runner, "check", gone)
    engine.add(ask("poison", [5, 6]))
    with pytest.raises(OSError, match="gone"):
        engine.step()
    assert [(event.id, event.finish) for event in engine.step()] == [("poison", "error")]
    assert_idle(engine)


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_an_answer_goes_on_where_another_engine_had_left_it(llama_folder: Path, overlap: str):
    """With all that counts tokens: seeds, penalties, min_tokens, max_tokens, stop tokens, bad words."""
    cases = [
        SamplingParams(temperature=0, max_tokens=12),
        SamplingParams(temperature=1.0, seed=5, max_tokens=12),
        SamplingParams(temperature=0.9, seed=6, max_tokens=12, frequency_penalty=1.0, repetition_penalty=1.2),
        SamplingParams(temperature=1.0, seed=7, max_tokens=12, min_tokens=9, logit_bias={2: 8.0}),
    ]
    settings = {"schedule.overlap": overlap}
    for n, params in enumerate(cases):
        more = {"stop_ids": frozenset({2}), "eos_ids": frozenset({2}), "bad": ((40, 41), (50,))}
        whole = start(tiny.config(llama_folder, **settings)).engine
        whole.add(ask("a", [9, 8, 7, n + 3], params, **more))
        answer = tokens_of(drain(whole))["a"]
        assert len(answer) > 8
        for made in (1, 5, len(answer) - 1):
            engine = start(tiny.config(llama_folder, **settings)).engine
            engine.add(ask("a", [9, 8, 7, n + 3], params, emitted=tuple(answer[:made]), **more))
            events = drain(engine)
            assert tokens_of(events)["a"] == answer[made:]
            assert events[0].scheduled is not None
            assert all(event.scheduled is None for event in events[1:])
