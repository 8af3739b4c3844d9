"""Qwen's options: where windows begin, and biases."""

from typing import Any

import pytest

from headrace import models
from headrace.base.errors import BadCheckpoint
from headrace.models.qwen import HANDLES, TINY
from tests.models.reference import agree

FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize("kind", HANDLES)
@pytest.mark.parametrize(
    ("change", "windows"),
    [
        ({"use_sliding_window": False}, [None, None, None]),
        ({"max_window_layers": 0}, [7, 7, 7]),
        ({"max_window_layers": 2}, [None, None, 7]),
        ({"max_window_layers": 9}, [None, None, None]),
        ({"layer_types": [SLIDING, FULL, SLIDING]}, [7, None, 7]),
    ],
    ids=str,
)
def test_windows(kind: str, change: dict[str, Any], windows: list[int | None]):
    config = TINY | {"model_type": kind} | change
    assert [layer.window for layer in models.build(config, 8).attentions] == windows
    agree(config)


def test_windows_are_off_unless_asked_for():
    config = {key: value for key, value in TINY.items() if key != "use_sliding_window"}
    assert {layer.window for layer in models.build(config, 8).attentions} == {None}
    agree(config)


def test_qwen3_biases():
    agree(TINY | {"model_type": "qwen3", "attention_bias": True})


@pytest.mark.parametrize("types", [[FULL], [FULL, SLIDING, "chunked_attention"], "full", [1, 2, 3]], ids=str)
def test_senseless_layer_types_are_named(types: Any):
    with pytest.raises(BadCheckpoint, match="layer_types"):
        models.build(TINY | {"layer_types": types}, 8)


def test_a_window_without_a_width_is_named():
    config = {key: value for key, value in TINY.items() if key != "sliding_window"}
    assert {layer.window for layer in models.build(config, 8).attentions} == {None}
    config["layer_types"] = [FULL, SLIDING, FULL]
    with pytest.raises(BadCheckpoint, match="no sliding_window"):
        models.build(config, 8)
