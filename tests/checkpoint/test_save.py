"""A saved checkpoint is what transformers reads; the folder appears whole or not at all."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from headrace.base.errors import Refused
from headrace.checkpoint.save import save
from headrace.nn.step import Whole
from tests.checkpoint.files import TINY, model


def test_transformers_reads_it_and_computes_the_same(tmp_path: Path):
    built = model(TINY)
    save(tmp_path / "m", built.sources(), TINY | {"architectures": ["LlamaForCausalLM"]}, largest=20_000)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    ids = torch.arange(9)
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
        assert torch.allclose(built.logits(built(Whole(ids))), expected, atol=1e-4)
    assert len(list((tmp_path / "m").glob("model-*-of-*.safetensors"))) > 2


def test_all_files_may_be_read_by_whom_the_first_may(tmp_path: Path):
    save(tmp_path / "m", model(TINY).sources(), TINY)
    modes = {file.stat().st_mode for file in (tmp_path / "m").iterdir()}
    assert len(modes) == 1, modes


def test_nothing_is_overwritten(tmp_path: Path):
    with pytest.raises(Refused, match="exists already"):
        save(tmp_path, iter(()), TINY)


def test_a_failure_leaves_nothing_behind(tmp_path: Path):
    def broken() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.ones(3)
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        save(tmp_path / "m", broken(), TINY)
    assert list(tmp_path.iterdir()) == []
