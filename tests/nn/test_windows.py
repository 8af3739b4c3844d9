"""Which layers have a window."""

from headrace.nn.windows import FULL, SLIDING, windows


def test_from_layer_types_or_by_rule():
    config = {"sliding_window": 5}
    assert windows(config | {"layer_types": [FULL, SLIDING]}, 2) == [None, 5]
    assert windows(config | {"model_type": "gemma2"}, 3) == [5, None, 5]
    assert windows(config | {"model_type": "mistral"}, 2) == [5, 5]
    assert windows(config | {"use_sliding_window": True, "max_window_layers": 1}, 2) == [None, 5]
    assert windows(config, 2) == [None, None]
