"""Reading numbers from a config, with every complaint naming its key."""

from typing import Any

import pytest

from headrace.base.errors import BadCheckpoint
from headrace.nn.shape import Shape, count, flag, number, optional

CONFIG = {
    "vocab_size": 9,
    "hidden_size": 12,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "rms_norm_eps": 1e-6,
}


def test_what_may_be_missing():
    shape = Shape.of(CONFIG)
    assert (shape.kv_heads, shape.head_dim, shape.act, shape.tied) == (3, 4, "silu", False)
    assert shape.scale == 0.5
    assert Shape.of(CONFIG | {"head_dim": None, "num_key_value_heads": None}) == shape


def test_differences_come_last():
    assert Shape.of(CONFIG | {"tie_word_embeddings": False}, tied=True, scale=3.0).tied


@pytest.mark.parametrize("value", [True, "3", [], {}, 0, -1, float("nan"), float("inf"), 10**400])
def test_no_numbers(value: Any):
    for read in (number, count, optional):
        with pytest.raises(BadCheckpoint, match="width is"):
            read({"width": value}, "width")


def test_numbers():
    assert number({"a": 2}, "a") == 2.0
    assert count({"a": 2.0}, "a") == 2
    assert count({"a": None}, "a", 7) == 7
    assert optional({"a": None}, "a") is None
    assert optional({"a": 0.5}, "a") == 0.5
    with pytest.raises(BadCheckpoint, match="whole"):
        count({"a": 0.5}, "a")
    with pytest.raises(BadCheckpoint, match="has no a"):
        number({}, "a")


def test_flags():
    assert flag({"a": True}, "a", False)
    assert flag({"a": None}, "a", True)
    assert not flag({}, "a", False)
    with pytest.raises(BadCheckpoint, match="a is 1"):
        flag({"a": 1}, "a", False)


def test_faults_say_which_field():
    with pytest.raises(BadCheckpoint) as caught:
        Shape.of(CONFIG | {"num_key_value_heads": 2})
    assert caught.value.param == "num_key_value_heads"
