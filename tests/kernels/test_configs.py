"""Which configuration a linear layer gets."""

import pytest
import torch

from headrace.kernels import configs
from headrace.kernels.configs import Gemv, Skinny


@pytest.mark.parametrize("n", [1, 77, 1024, 6144, 151936])
@pytest.mark.parametrize("k", [16, 576, 1024, 3072, 14336])
@pytest.mark.parametrize("gated", [False, True])
def test_gemv_rule_makes_tiles_that_compile_and_fill_the_chip(n, k, gated):
    config = configs.gemv_rule(n, k, gated)
    for size in (config.rows, config.chunk, config.warps):
        assert size & (size - 1) == 0
    assert config.chunk >= 8
    assert config.rows == 1 or -(-n // config.rows) >= 3 * 132


@pytest.mark.parametrize("tokens", [2, 33, 64])
@pytest.mark.parametrize(("n", "k"), [(1024, 2048), (151936, 1024), (64, 128)])
def test_skinny_rule_splits_only_what_leaves_processors_idle(tokens, n, k):
    config = configs.skinny_rule(tokens, n, k, gated=False)
    tiles = -(-n // config.n)
    assert config.split == 1 or tiles * config.split // 2 < 132
    assert config.split == 1 or k // config.split >= 256


def test_measured_rows_win_over_rules(monkeypatch):
    monkeypatch.setitem(configs.GEMV, (9, 9), {(8, 16, False): Gemv(1, 16, 2)})
    monkeypatch.setitem(
        configs.SKINNY, (9, 9), {(16, 8, 16, False): None, (64, 8, 16, False): Skinny(16, 16, 1, 4, 2)}
    )
    monkeypatch.setitem(configs.SKINNY_TOKENS, (9, 9), 64)
    assert configs.gemv((9, 9), 8, 16) == Gemv(1, 16, 2)
    assert configs.gemv((9, 9), 8, 32) == configs.gemv_rule(8, 32, False)
    assert configs.skinny((9, 9), 4, 8, 16) is None
    assert configs.skinny((9, 9), 17, 8, 16) == Skinny(16, 16, 1, 4, 2)
    assert configs.skinny((9, 9), 64, 8, 32) == configs.skinny_rule(64, 8, 32, False)
    assert configs.skinny((9, 9), 65, 8, 16) is None


def test_unknown_generations_leave_few_tokens_to_the_library_and_never_overlap():
    assert configs.skinny((7, 5), 2, 1024, 1024) is None
    assert configs.capability(torch.device("cpu")) == (0, 0)
    assert not configs.pdl(torch.device("cpu"))


@pytest.mark.parametrize("cap", list(configs.PAGED_DECODE))
@pytest.mark.parametrize("head_dim", [8, 64, 80, 128, 256])
def test_attention_has_a_configuration_for_any_step(cap, head_dim):
    listed = 64 if head_dim <= 64 else 128 if head_dim <= 128 else 256
    decodes, prefills = configs.PAGED_DECODE[cap][listed], configs.PAGED_PREFILL[cap][listed]
    assert configs.paged_decode(cap, head_dim) == decodes[configs.MANY]
    assert configs.paged_prefill(cap, head_dim) == prefills[configs.MANY, configs.MANY]
    for most, config in decodes.items():
        assert configs.paged_decode(cap, head_dim, most) == config
        assert most == configs.MANY or configs.paged_decode(cap, head_dim, most + 1) != config
    for (queries, keys), config in prefills.items():
        assert configs.paged_prefill(cap, head_dim, queries, keys) == config


def test_long_rows_and_short_chunks_of_prompts_differ_on_hopper():
    chosen = [configs.paged_prefill((9, 0), 128, *n) for n in ((8, 1024), (512, 512), (2048, 32768))]
    assert len(set(chosen)) == 3


def test_any_number_of_rows_is_not_served_by_what_few_rows_need():
    for table in configs.PAGED_DECODE.values():
        assert all(steps[configs.MANY].alone is None for steps in table.values())
