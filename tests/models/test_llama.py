"""Llama's options: every rope scaling, biases; Mistral with and without its window."""

from typing import Any

import pytest
import torch

from headrace import models
from headrace.base.errors import BadCheckpoint
from headrace.models.llama import TINY
from tests.models.reference import agree, expected, ours, paged, sequences, theirs
from tests.tiny import logits as whole

SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"type": "linear", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "truncate": False},
    {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "attention_factor": 1.3,
    },
    {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "mscale": 1.5,
        "mscale_all_dim": 0.7,
    },
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_rope_scalings(scaling: dict[str, Any]):
    config = TINY | {"rope_scaling": scaling, "head_dim": 16, "rope_theta": 100.0}
    agree(config)
    plain = ours(config | {"rope_scaling": None}, theirs(config))
    changed = (whole(plain, range(50)) - whole(ours(config, theirs(config)), range(50))).abs().max()
    assert (changed > 0.1) == (scaling["rope_type" if "rope_type" in scaling else "type"] != "default")


@pytest.mark.parametrize("original", [16, 40, 128])
def test_dynamic_rope_is_that_of_generation_token_by_token(original: int):
    scaling = {"rope_type": "dynamic", "factor": 3.0}
    config = TINY | {"rope_scaling": scaling, "max_position_embeddings": original, "rope_theta": 100.0}
    del config["sliding_window"]  # means nothing to Llama, but transformers' cache forgets by it
    reference = theirs(config)
    model, ids = ours(config, reference), sequences(config)
    wanted = []
    with torch.no_grad():
        for sequence in ids:
            reference(sequence[None, :1])  # takes its frequencies back to the plain ones
            steps, cache = [], None
            for token in sequence:
                out = reference(token[None, None], past_key_values=cache, use_cache=True)
                steps, cache = [*steps, out.logits[0, 0]], out.past_key_values
            wanted.append(torch.stack(steps))
    for sequence, logits in zip(ids, wanted, strict=True):
        torch.testing.assert_close(whole(model, sequence.tolist()), logits, atol=1e-3, rtol=0)
    for found, logits in zip(paged(model, ids, 4), wanted, strict=True):
        torch.testing.assert_close(found, logits, atol=1e-3, rtol=0)


def test_biases():
    agree(TINY | {"attention_bias": True, "mlp_bias": True})


def test_as_many_kv_heads_as_heads_where_none_are_given():
    config = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
    agree(config)


def test_head_dim_from_hidden_size():
    agree({key: value for key, value in TINY.items() if key != "head_dim"})


@pytest.mark.parametrize("window", [None, 1, 4, 37, 500])
def test_mistral_windows(window: int | None):
    config = TINY | {"model_type": "mistral", "sliding_window": window}
    agree(config)
    assert {layer.window for layer in models.build(config, 8).attentions} == {window}


def test_llama_has_no_window():
    assert {layer.window for layer in models.build(TINY, 8).attentions} == {None}


def test_frequency_factors_of_gguf_files():
    """They divide the frequencies: llama3 scaling written out as factors gives the same logits."""
    scaling = SCALINGS[3]
    config = TINY | {"rope_scaling": scaling, "head_dim": 16}
    reference = theirs(config)
    table = models.build(config, 8).attentions[0].rope
    plain = models.build(config | {"rope_scaling": None}, 8).attentions[0].rope
    assert table is not None
    assert plain is not None
    factors = (plain.frequencies / table.frequencies).tolist()
    assert max(factors) == pytest.approx(8)
    model = ours(config | {"rope_scaling": None, "rope_freq_factors": factors}, reference)
    ids = sequences(config)[2]
    torch.testing.assert_close(whole(model, ids.tolist()), expected(reference, ids), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_freq_factors": [1.0]}, "frequency factors"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_named(change: dict[str, Any], key: str):
    with pytest.raises(BadCheckpoint, match=key):
        models.build(TINY | change, 8)
