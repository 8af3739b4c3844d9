"""Rehearsals on a CPU, where nothing is to be compiled: which steps they make, and that they leave no trace."""

import json
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.base.errors import BadCheckpoint
from headrace.engine import rehearsal
from headrace.engine.graphs import Graphs, widened
from headrace.engine.request import SamplingParams
from headrace.engine.runner import Runner
from headrace.engine.sampler import Sampler
from headrace.engine.start import start
from headrace.models import gemma
from headrace.nn.decoder import Decoder
from tests import tiny
from tests.engine.test_engine import ask

TYPES = ["sliding_attention", "sliding_attention", "full_attention"] * 2


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Of a model whose layers see differently far, with nothing recorded yet."""
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    at = tiny.folder(tmp_path / "model", gemma.TINY, num_hidden_layers=6, layer_types=TYPES)
    runner = start(tiny.config(at)).engine.runner
    monkeypatch.setattr(runner.batch.backend, "plan_recorded", runner.batch.backend.plan, raising=False)
    return runner


def test_every_padded_row_count_and_size_of_prompt_is_rehearsed(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
):
    graphs, seen = Graphs(runner.model, runner.batch, runner.sampler, 8), []
    graphs.most_tokens = 40
    forward, every = Decoder.forward, list(runner.model.blocks)

    def watched(self: Decoder, step) -> torch.Tensor:
        seen.append((runner.batch.rows, runner.batch.tokens, len(self.blocks)))
        return forward(self, step)

    monkeypatch.setattr(Decoder, "forward", watched)
    kept = [runner.batch.table.clone(), runner.batch.last.clone()]
    assert rehearsal.rehearse(graphs) == {}
    assert graphs.model is runner.model
    sizes = {(rows, tokens) for rows, tokens, _ in seen}
    assert {(n, n) for n in (1, 2, 4, 6, 8)} <= sizes
    assert {(8, 16), (8, 32), (1, 71), (1, 72)} <= sizes, "recorded ones, then the largest: even and odd"
    assert seen[0][1] == 72, "what takes longest to compile comes first"
    assert {blocks for *_, blocks in seen} == {4}, "two of each kind"
    assert list(runner.model.blocks) == every
    assert all(map(torch.equal, kept, [runner.batch.table, runner.batch.last]))


def test_every_way_to_draw_that_requests_can_cause_is_rehearsed():
    """By what each may ask for, alone and in the company of one or two others."""
    values = {"temperature": (0, 1), "top_k": (0, -1, 5, 99), "top_p": (1, 0.9), "min_p": (0, 0.1)}
    asked = [dict(zip(values, each, strict=True)) for each in product(*values.values())]
    sampler = Sampler(len(asked), 99, "cpu")
    for slot, params in enumerate(asked):
        sampler.admit(slot, ask(slot, [3], SamplingParams(max_tokens=1, **params)), [3])
    rows = [slots for n in (1, 2, 3) for slots in combinations(range(len(asked)), n)]
    assert {sampler.draws(np.array(slots)) for slots in rows} == set(rehearsal.DRAWS)


def test_steps_of_all_kinds_launch_what_was_rehearsed(monkeypatch: pytest.MonkeyPatch):
    """Whatever launches a kernel that was not would wait until it is compiled."""
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    ran = subprocess.run([sys.executable, "-m", "tests.engine.noting"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said["missing"] == []
    kinds = "choose", "race", "forbid", "prefill", "decode", "derive"
    assert all(any(f".{kind}_kernel " in launch for launch in said["launched"]) for kind in kinds)


class Gpu:
    """What a plan says of one."""

    device, attention, graphs = torch.device("cuda"), "triton", True


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> rehearsal.Kernels:
    """Of an engine on a GPU that finds no note."""
    monkeypatch.setattr(rehearsal, "_facts", lambda plan: ())
    monkeypatch.setattr(rehearsal, "remember", lambda: None)
    monkeypatch.setattr(rehearsal.configs, "gluon", lambda: True)
    monkeypatch.setattr(rehearsal, "Compilers", Early)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    return rehearsal.Kernels({}, Gpu)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("fails", [False, True])
def test_kernels_are_compiled_then_loaded(
    kernels: rehearsal.Kernels, fails: bool, monkeypatch: pytest.MonkeyPatch
):
    """While weights are filled; one that cannot be loaded is no fault, and a note is left of what is compiled."""
    did = []

    def load() -> None:
        did.append("load")
        if fails:
            raise RuntimeError("no such thing")

    def rehearse(graphs: Graphs, tell) -> dict[str, object]:
        tell("job")
        return {"a": load, "b": load}

    monkeypatch.setattr(rehearsal, "rehearse", rehearse)
    assert kernels.ours
    kernels.prepare(None, lambda: did.append("fill"))  # pyright: ignore[reportArgumentType]
    assert sorted(did) == ["fill", "load"] if fails else ["fill", "load", "load"]
    assert kernels._compilers is not None
    assert kernels._compilers.jobs == ["job"]  # pyright: ignore[reportAttributeAccessIssue]
    assert rehearsal.Kernels({}, Gpu)._compilers is None, "the note"  # pyright: ignore[reportArgumentType]


def test_weights_that_cannot_be_filled_are_a_fault(
    kernels: rehearsal.Kernels, monkeypatch: pytest.MonkeyPatch
):
    def fill() -> None:
        raise BadCheckpoint("half a file")

    monkeypatch.setattr(rehearsal, "rehearse", lambda graphs, tell: {})
    with pytest.raises(BadCheckpoint):
        kernels.prepare(None, fill)  # pyright: ignore[reportArgumentType]


class Early:
    """Compilers."""

    def __init__(self) -> None:
        self.jobs, self.stopped = [], False

    def compile(self, job: object) -> None:
        self.jobs.append(job)

    def wait(self, seconds: float) -> bool:
        return True

    def stop(self) -> None:
        self.stopped = True


def test_kernels_are_for_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a CPU nothing is missing, and compilers that were started early go."""
    early = Early()
    monkeypatch.setattr(rehearsal, "started", lambda: early)
    at = tiny.folder(tmp_path / "model")
    start(tiny.config(at))
    assert early.stopped


def test_steps_with_prompts_are_laid_out_for_few_sizes():
    sizes = [widened(n, 8192) for n in range(1, 9217)]
    assert all(n <= size for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 50
    assert [widened(n, 8192) for n in (1, 17, 300, 8192, 8193, 8208, 8449)] == [
        16,
        32,
        320,
        8192,
        8448,
        8448,
        8704,
    ]
