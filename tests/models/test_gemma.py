"""Gemma's options: patterns of windows, soft-caps, the two rope bases, the embedding's rounding."""

from typing import Any

import pytest
import torch

from headrace import models
from headrace.base.errors import BadCheckpoint
from headrace.models.gemma import TINY
from tests.models.reference import agree

SECOND = TINY
THIRD = TINY | {"model_type": "gemma3_text", "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0}


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("config", [SECOND, THIRD], ids=["gemma2", "gemma3"])
def test_soft_caps(config: dict[str, Any], cap: float | None):
    agree(config | {"attn_logit_softcapping": cap, "final_logit_softcapping": cap})


def test_without_layer_types_gemma2_alternates():
    config = without(SECOND, "layer_types")
    assert [layer.window for layer in models.build(config, 8).attentions] == [7, None, 7]
    agree(config)


@pytest.mark.parametrize(
    ("pattern", "windows"), [({}, [7] * 3), ({"sliding_window_pattern": 2}, [7, None, 7])]
)
def test_without_layer_types_gemma3_follows_its_pattern(pattern: dict[str, int], windows: list[int | None]):
    config = without(THIRD, "layer_types") | pattern
    assert [layer.window for layer in models.build(config, 8).attentions] == windows
    agree(config)


def test_gemma3_scales_only_the_rope_of_full_layers():
    config = THIRD | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 100.0}
    agree(config | {"rope_local_base_freq": 50.0})
    near, far, _ = (layer.rope for layer in models.build(config, 8).attentions)
    assert near is not None
    assert far is not None
    assert (near.base, near.kind, far.base, far.kind) == (10_000.0, "default", 100.0, "linear")


def test_rope_bases_where_none_are_given():
    agree(without(THIRD, "rope_theta", "rope_local_base_freq"))
    agree(without(SECOND, "rope_theta", "rope_local_base_freq"))


@pytest.mark.parametrize("config", [SECOND, THIRD], ids=["gemma2", "gemma3"])
def test_biases_and_scale(config: dict[str, Any]):
    agree(config | {"attention_bias": True, "query_pre_attn_scalar": 3})


def test_the_embedding_scale_is_rounded_to_the_dtype():
    model = models.build(TINY | {"hidden_size": 3072, "vocab_size": 2}, 8)
    model.embed_tokens.weight.data.fill_(9.0)
    ids = torch.zeros(1, dtype=torch.int64)
    assert model.embed_tokens(ids)[0, 0].item() == pytest.approx(9 * 55.4256, abs=1e-3)
    assert model.to(torch.bfloat16).embed_tokens(ids)[0, 0].item() == 500.0  # 9 * 55.5, not 9 * 55.4256


def test_attention_to_both_sides_is_refused():
    with pytest.raises(BadCheckpoint, match="use_bidirectional_attention"):
        models.build(THIRD | {"use_bidirectional_attention": True}, 8)
