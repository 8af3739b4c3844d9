"""Rotation: the same logits, in axes of which none stands out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headrace import models
from headrace.base.errors import Refused
from headrace.checkpoint.load import load, open_source
from headrace.checkpoint.save import save
from headrace.checkpoint.source import Source
from headrace.nn.decoder import Decoder
from headrace.nn.step import Whole
from headrace.optimize.passes.rotation import PASS, Axes, cosines
from tests.optimize.passes import made

IDS = torch.tensor([1, 5, 2, 8, 3, 3, 7, 0, 150, 198])
CASES = {
    "llama": {**made.CONFIGS["llama"], "tie_word_embeddings": True},
    "llama, odd heads": {**made.CONFIGS["llama"], "hidden_size": 40, "head_dim": 6},
    "qwen2": made.CONFIGS["qwen2"],
    "qwen3": {**made.CONFIGS["qwen3"], "hidden_size": 64},
}


def source_of(model: Decoder, config: dict[str, Any], at: Path) -> Source:
    save(at, model.sources(), config)
    return open_source(at)


def turned(config: dict[str, Any], source: Source, **options: Any) -> Decoder:
    """The model that a walk would write: each tensor turned alone, a tied head of its own."""
    with torch.device("meta"):
        meta = models.build(config, 64)
    turn = PASS(**options).prepare(meta, source)
    with torch.device("meta"):
        model = models.build({**config, "tie_word_embeddings": False}, 64)
    model.allocate(torch.float32, "cpu")
    for name, target in model.sources():
        there = name if name in source.names() else "model.embed_tokens.weight"
        target.copy_(turn.weight(name, source.read(there)))
    return model


@torch.inference_mode()
def logits(model: Decoder) -> Tensor:
    return model.logits(model(Whole(IDS)))


@pytest.mark.parametrize("options", [{}, {"heads": False}, {"seed": 7}], ids=str)
@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_a_turned_model_is_the_same_model(config: dict[str, Any], options: dict[str, Any], tmp_path: Path):
    plain = made.model(config)
    found = turned(config, source_of(plain, config, tmp_path / "m"), **options)
    expected = logits(plain)
    assert (logits(found) - expected).norm() < 1e-4 * expected.norm()
    assert not torch.allclose(found.embed_tokens.weight, plain.embed_tokens.weight)
    norms = [module for module in found.modules() if type(module).__name__ == "RMSNorm"]
    ones = [bool((norm.weight == 1).all()) for norm in norms if norm.weight.shape[0] == config["hidden_size"]]
    assert len(ones) == 2 * config["num_hidden_layers"] + 1
    assert all(ones)


def test_what_stands_out_is_spread(tmp_path: Path):
    """A channel of the hidden state that is twenty times the others is not to be seen any more."""
    config = {**CASES["llama"], "hidden_size": 64}
    plain = made.model(config)
    plain.embed_tokens.weight.data[:, 5] *= 20
    source = source_of(plain, config, tmp_path / "m")

    def share(model: Decoder) -> float:
        table = model.embed_tokens.weight.data
        return float((table.abs().amax(1) / table.square().mean(1).sqrt()).mean())

    assert share(turned(config, source)) < 0.5 * share(plain)


@pytest.mark.parametrize("size", [1, 2, 6, 9, 12, 40, 48, 576])
def test_axes_are_orthogonal_and_all_mixed(size: int):
    axes = Axes.random(size, torch.Generator().manual_seed(0))
    matrix = axes.rows(torch.eye(size))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), atol=1e-5, rtol=0)
    assert matrix.abs().max() <= (2 / size) ** 0.5 + 1e-5


def test_cosines_of_one_is_one():
    assert cosines(1).tolist() == [[1.0]]


def test_another_seed_gives_other_axes():
    first, second, again = (
        Axes.random(32, torch.Generator().manual_seed(n)).rows(torch.eye(32)) for n in (0, 1, 0)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_norms_after_layers_are_refused(tmp_path: Path):
    config = made.CONFIGS["gemma2"]
    plain = made.model(config)
    with pytest.raises(Refused, match="norm what attention and MLP give"):
        PASS().prepare(plain, source_of(plain, config, tmp_path / "m"))


def test_other_tensors_come_back_themselves(tmp_path: Path):
    config = CASES["qwen3"]
    plain = made.model(config)
    source = source_of(plain, config, tmp_path / "m")
    turn = PASS(heads=False).prepare(plain, source)
    for name in ("model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.q_proj.bias"):
        tensor = torch.randn(8)
        assert turn.weight(name, tensor) is tensor


def test_the_loader_takes_what_is_turned(tmp_path: Path):
    """As a walk writes it: a folder whose configuration says that the head is its own."""
    config = CASES["qwen2"]
    plain = made.model(config)
    found = turned(config, source_of(plain, config, tmp_path / "m"))
    untied = {**config, "tie_word_embeddings": False}
    save(tmp_path / "turned", found.sources(), untied)
    with torch.device("meta"):
        again = models.build(untied, 64)
    again.allocate(torch.float32, "cpu")
    load(again, open_source(tmp_path / "turned"))
    assert torch.equal(logits(again), logits(found))
