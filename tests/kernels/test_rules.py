"""What linear layers get where nothing was measured."""

import pytest

from headrace.kernels import rules
from headrace.kernels.choices import Int4Few, Int4One, Int4Tile, Int4Wide, Ring


@pytest.mark.parametrize("n", [1, 77, 1024, 6144, 151936])
@pytest.mark.parametrize("k", [16, 576, 1024, 3072, 14336])
@pytest.mark.parametrize("gated", [False, True])
def test_gemv_rule_makes_tiles_that_compile_and_fill_the_chip(n, k, gated):
    config = rules.gemv_rule(n, k, gated)
    for size in (config.rows, config.chunk, config.warps):
        assert size & (size - 1) == 0
    assert config.chunk >= 8
    assert config.rows == 1 or -(-n // config.rows) >= 3 * 132


@pytest.mark.parametrize("tokens", [2, 33, 64])
@pytest.mark.parametrize(("n", "k"), [(1024, 2048), (151936, 1024), (64, 128)])
def test_skinny_rule_splits_only_what_leaves_processors_idle(tokens, n, k):
    config = rules.skinny_rule(tokens, n, k, gated=False)
    tiles = -(-n // config.n)
    assert config.split == 1 or tiles * config.split // 2 < 132
    assert config.split == 1 or k // config.split >= 256


def test_rings_are_cut_until_half_the_processors_have_a_part():
    assert [rules.ring_rule(tokens, 4096, 4096).tokens for tokens in (2, 17, 64, 65)] == [16, 32, 64, 128]
    parts = [rules.ring_rule(2, n, 4096).parts for n in (128 * 66, 128 * 65, 128 * 32, 128 * 4)]
    assert parts == [1, 2, 4, 4], "of 64 steps: parts have 16 at least"
    assert [rules.ring_rule(2, 4096, k, size=1).parts for k in (2048, 4096, 14336)] == [1, 2, 4]
    gated = rules.ring_rule(2, 14336, 4096, gated=True)
    assert gated == Ring(256, 16, 1), "gate and up are halves of a tile"


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("k", [64, 576, 1024, 4096, 14336])
@pytest.mark.parametrize("n", [16, 1024, 14336])
def test_4_bit_weights_have_a_configuration_for_any_tokens(n, k, gated):
    for tokens in (1, 2, 8, 9, 33, 100, 256):
        config = rules.int4_rule((9, 0), tokens, n, k, gated)
        if isinstance(config, Int4One):
            assert tokens == 1
            assert 2 <= config.tiles <= 8
            sizes = [config.warps, config.tiles]
        elif isinstance(config, Int4Few):
            assert tokens <= 16
            assert config.chunk % 64 == 0
            sizes = [config.chunk, config.warps]
        else:
            assert isinstance(config, Int4Tile)
            assert tokens > 1
            assert config.k % 64 == 0
            assert config.n % (32 if gated else 16) == 0
            sizes = [config.m, config.n, config.k, config.split, config.warps]
        assert all(size & (size - 1) == 0 for size in sizes)
    assert rules.int4_rule((9, 9), 8192, n, k, gated) is None


def test_tall_tiles_of_4_bits_are_for_gates_and_for_much_work():
    found = [rules.int4_wide(tokens, 28672, 4096, gated=True) for tokens in (2, 17, 64, 65, 1100)]
    assert [config.tokens for config in found] == [16, 32, 64, 128, 128]
    assert [config.rows for config in found] == [128, 128, 256, 256, 256]
    for tokens, k, rows in (
        (64, 4096, 128),
        (512, 4096, 128),
        (1100, 4096, 256),
        (128, 14336, 128),
        (192, 14336, 256),
    ):
        assert rules.int4_wide(tokens, 4096, k, gated=False).rows == rows


def test_tiles_of_256_tokens_are_for_tokens_that_fill_them_and_for_much_work():
    for tokens, k, many in (
        (230, 14336, False),
        (231, 14336, True),
        (512, 4096, False),
        (768, 4096, True),
        (640, 14336, False),
    ):
        assert (rules.int4_wide(tokens, 4096, k, gated=False) == Int4Wide(128, 256)) == many, tokens
    assert rules.int4_wide(8192, 28672, 4096, gated=True) == Int4Wide(128, 256)
