"""The configurations that tuning tries."""

import pytest

pytest.importorskip("triton")

from headrace.bench.kernels_linear_tune import MODELS, TUNED_TOKENS, gemv_candidates, skinny_candidates

LAYERS = [layer for model in MODELS.values() for layer in model.layers]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda y: f"{y.name}-{y.n}")
def test_every_layer_has_a_moderate_number_of_distinct_candidates(layer):
    for tokens in TUNED_TOKENS:
        options = list(gemv_candidates(layer) if tokens == 1 else skinny_candidates(layer, tokens))
        assert 3 <= len(options) <= 16
        assert len(set(options)) == len(options)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda y: f"{y.name}-{y.n}")
def test_tiles_are_powers_of_two_and_splits_leave_work(layer):
    for option in gemv_candidates(layer):
        assert option.rows & (option.rows - 1) == 0
        assert option.chunk & (option.chunk - 1) == 0
    for option in skinny_candidates(layer, 16):
        assert option.split * 2 * option.k <= layer.k
