"""A model filled part by part computes what the whole checkpoint does, turned or not."""

from pathlib import Path

import pytest
import torch

from headrace.optimize.job import look
from headrace.optimize.resident import Resident
from tests import tiny
from tests.optimize import small

IDS = [3, 14, 15, 9, 2, 6, 5]


@pytest.mark.parametrize("passes", [["rtn"], ["rotation", "rtn"]])
@pytest.mark.parametrize("tied", [False, True])
def test_filled_it_is_the_model(text: Path, tmp_path: Path, tied: bool, passes: list[str]):
    source = small.model(tmp_path / "model", tie_word_embeddings=tied)
    parts = Resident(look(str(source), tmp_path / "out", small.recipe(text, passes=passes)))
    parts.fill(parts.model.modules())
    assert (parts.model.lm_head is None) == (tied and passes == ["rtn"])
    wanted = tiny.logits(tiny.decoder(source), IDS)
    torch.testing.assert_close(tiny.logits(parts.model, IDS), wanted, atol=1e-4, rtol=1e-4)
