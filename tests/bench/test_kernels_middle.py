"""The tiles that the bench of middling products tries."""

import pytest

pytest.importorskip("triton")

from headrace.bench.kernels_linear_tune import MODELS
from headrace.bench.kernels_middle import LONG, TOKENS, candidates, floor_us

LAYERS = [layer for model in MODELS.values() for layer in model.layers]


@pytest.mark.parametrize("tokens", [*TOKENS, LONG])
def test_every_layer_has_distinct_candidates_that_suit_its_tokens(tokens):
    for layer in LAYERS:
        tried = list(candidates(tokens, layer.n, layer.k, layer.gated, 132))
        assert 2 <= len(tried) <= 14
        assert len(set(tried)) == len(tried)
        for config in tried:
            assert config.m < 2 * max(tokens, 64)
            assert (config.m + config.n) * config.k * 2 * config.stages * config.programs <= 227 * 1024


def test_floors_grow_with_tokens():
    for layer in LAYERS:
        floors = [floor_us(layer, tokens) for tokens in (64, 256, 8192)]
        assert floors == sorted(floors)
        assert floors[0] > layer.bytes / 5e12 * 1e6
