"""Which layers have a window."""

from headrace.nn.windows import FULL, SLIDING, windows


def test_from_layer_types_or_by_rule():
    config = {"sliding_window": 5}
    assert windows(config | {"layer_types": [FULL, SLIDING]}, 2, lambda i: True) == [None, 5]
    assert windows(config, 3, lambda i: i != 1) == [5, None, 5]
    assert windows({}, 2, lambda i: False) == [None, None]
