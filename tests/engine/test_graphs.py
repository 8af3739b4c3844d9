"""Recorded steps, without a GPU: a recording here is the function that would have been recorded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headrace.engine.graphs import Captured, Graphs, Key, Masked
from headrace.engine.request import SamplingParams
from headrace.engine.runner import Runner
from headrace.engine.start import start
from headrace.engine.stream import Stream
from headrace.engine.structured import StructuredOutputsParams
from tests import tiny


class Again:
    """Computes what a graph would, into the same memory; the host's part of attention included."""

    def __init__(self, graphs: Graphs, step: Any):
        self.batch, self.step = graphs.batch, step
        kept = self.batch.last.clone()
        self.out: Tensor = step()
        self.batch.last.copy_(kept)

    def replay(self) -> None:
        self.batch.backend.plan(self.batch)
        self.out.copy_(self.step())


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(self: Graphs, step: Any, tried: bool) -> Captured:
        again = Again(self, step)
        return Captured(again, again.out)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Graphs, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)


def recorded(runner: Runner, rows: int) -> Graphs:
    """From now on the runner's steps are recorded, those with prompts excepted."""
    runner.graphs = Graphs(runner.model, runner.batch, runner.sampler, rows)
    runner.graphs.most_tokens = 0
    return runner.graphs


def form(**wanted: Any) -> StructuredOutputsParams:
    return StructuredOutputsParams(**wanted)


@pytest.mark.parametrize("more", [{}, {"presence_penalty": 1.0}], ids=["masks", "counts"])
def test_masks_come_between_two_graphs(llama_folder: Path, without_gpu: None, more: dict[str, Any]):
    """Rows of every kind draw what they draw without graphs; those that count tokens make the sampler do it."""
    forms = [None, form(regex="[ab]{20}"), form(json={"type": "array", "items": {"const": 7}, "minItems": 4}),
             None, form(choice=["yes", "nonono"]), form(json_object=True)]  # fmt: skip
    found: list[list[tuple[list[int], str | None]]] = []
    for graphs in (False, True):
        started = start(tiny.config(llama_folder, **{"schedule.overlap": "on", "max_num_seqs": 16}))
        recordings = recorded(started.engine.runner, 16) if graphs else None
        streams: dict[str, Stream] = {}
        for n, wanted in enumerate(forms * 2):
            params = SamplingParams(
                max_tokens=30, seed=n, temperature=(0, 0.8, 1)[n % 3], structured_outputs=wanted,
                ignore_eos=n % 2 == 0, **(more if n == 1 else {}),
            )  # fmt: skip
            (request,) = started.intake.requests(f"r{n}", "hello"[: n % 5 + 1], params)
            streams[request.id] = Stream(request, started.intake.tokenizer)
            started.engine.add(request)
        while started.engine.busy:
            for event in started.engine.step():
                streams[event.id].take(event)
        found.append([(stream.token_ids, stream.finish) for stream in streams.values()])
        if recordings is not None:
            kinds = {type(key) for key in recordings.captured}
            assert kinds == {Key, Masked} or (more and kinds == {Key})
    assert found[0] == found[1]


def test_a_draw_by_masks_is_no_step_without_them(llama_folder: Path, without_gpu: None):
    """As many rows that draw in the same way, first without grammars: their recording is another one."""
    started = start(tiny.config(llama_folder, **{"schedule.overlap": "on", "max_num_seqs": 16}))
    recordings = recorded(started.engine.runner, 16)
    for wanted in (None, form(regex="[ab]{20}")):
        streams: dict[str, Stream] = {}
        for n in range(4):
            params = SamplingParams(
                max_tokens=20, seed=n, temperature=0.8, ignore_eos=True, structured_outputs=wanted
            )
            (request,) = started.intake.requests(f"{wanted is None} {n}", "hello", params)
            streams[request.id] = Stream(request, started.intake.tokenizer)
            started.engine.add(request)
        while started.engine.busy:
            for event in started.engine.step():
                streams[event.id].take(event)
        assert wanted is None or all(set(stream.text) <= {"a", "b"} for stream in streams.values())
    assert {type(key) for key in recordings.captured} == {Key, Masked}
