"""Rehearsals on a CPU, where nothing is to be compiled: which steps they make, and that they leave no trace."""

from pathlib import Path

import pytest
import torch

from headrace.engine import rehearsal
from headrace.engine.graphs import Graphs
from headrace.engine.runner import Runner
from headrace.engine.start import start
from headrace.models import gemma
from headrace.nn.decoder import Decoder
from tests import tiny

TYPES = ["sliding_attention", "sliding_attention", "full_attention"] * 2


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Of a model whose layers see differently far, with nothing recorded yet."""
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    at = tiny.folder(tmp_path / "model", gemma.TINY, num_hidden_layers=6, layer_types=TYPES)
    runner = start(tiny.config(at)).engine.executor.runner
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
    assert rehearsal.rehearse(graphs) == []
    sizes = {(rows, tokens) for rows, tokens, _ in seen}
    assert {(n, n) for n in (1, 2, 4, 6, 8)} <= sizes
    assert {(8, 16), (8, 32), (1, 63), (1, 64)} <= sizes, "recorded ones, then the largest: even and odd"
    assert seen[0][1] == 64, "what takes longest to compile comes first"
    assert {blocks for *_, blocks in seen} == {4}, "two of each kind"
    assert list(runner.model.blocks) == every
    assert all(map(torch.equal, kept, [runner.batch.table, runner.batch.last]))


def test_kernels_are_for_gpus(tmp_path: Path):
    """On a CPU nothing is missing, and compilers that were started early go."""

    class Early:
        stopped = False

        def stop(self) -> None:
            self.stopped = True

    early = Early()
    at = tiny.folder(tmp_path / "model")
    start(tiny.config(at), None, early)  # pyright: ignore[reportArgumentType]
    assert early.stopped
