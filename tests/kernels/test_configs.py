"""Which configurations are looked up, and how tables are read."""

import pytest
import torch

from headrace.base.errors import Refused
from headrace.kernels import configs, rules, table
from headrace.kernels.choices import (
    Blas,
    Gemv,
    Int4One,
    Int4Tile,
    PagedDecode,
    PagedFew,
    PagedPrefill,
    Ring,
    Skinny,
    Wide,
)

CAPABILITIES = [(0, 0), (8, 0), (8, 9), (9, 0), (10, 0)]


def test_measured_rows_win_over_rules(measure, monkeypatch):
    size = {"n": 8, "k": 16, "gated": False}
    skinny = [
        {"tokens": 16, **size, "use": None},
        {"tokens": 64, **size, "use": configs.brief(Skinny(16, 16, 1, 4, 2))},
    ]
    measure((9, 9), gemv=[{**size, "use": configs.brief(Gemv(1, 16, 2))}], skinny=skinny)
    monkeypatch.setitem(rules.SKINNY_TOKENS, (9, 9), 64)
    assert configs.gemv((9, 9), 8, 16) == Gemv(1, 16, 2)
    assert configs.gemv((9, 9), 8, 32) == rules.gemv_rule(8, 32, False)
    assert configs.skinny((9, 9), 4, 8, 16) is None
    assert configs.skinny((9, 9), 17, 8, 16) == Skinny(16, 16, 1, 4, 2)
    assert configs.skinny((9, 9), 64, 8, 32) == rules.skinny_rule(64, 8, 32, False)
    assert configs.skinny((9, 9), 65, 8, 16) is None


def test_a_measured_ring_is_for_where_it_can_be_compiled(measure, monkeypatch):
    size, ring, tiles = {"n": 8, "k": 1 << 21, "gated": False}, Ring(128, 16, 4), Skinny(16, 16, 1, 4, 2)
    chosen = (16, ring), (32, tiles), (64, ring)
    rows = [{"tokens": most, **size, "use": configs.brief(config)} for most, config in chosen]
    for cap, known, wanted in (
        ((9, 0), True, [ring, ring, tiles, ring]),
        ((9, 0), False, [tiles, tiles, tiles, None]),
        ((10, 0), True, [tiles, tiles, tiles, None]),
    ):
        measure(cap, skinny=rows)
        monkeypatch.setattr(configs, "gluon", lambda known=known: known)
        assert [configs.skinny(cap, tokens, 8, 1 << 21) for tokens in (2, 16, 17, 64)] == wanted


def test_unknown_generations_leave_few_tokens_to_the_library_and_never_overlap():
    assert configs.skinny((7, 5), 2, 1024, 1024) is None
    assert configs.capability(torch.device("cpu")) == (0, 0)
    assert not configs.pdl(torch.device("cpu"))


@pytest.mark.parametrize("cap", CAPABILITIES)
@pytest.mark.parametrize("head_dim", [8, 64, 80, 128, 256])
def test_attention_has_a_configuration_for_any_step(cap, head_dim):
    listed = 64 if head_dim <= 64 else 128 if head_dim <= 128 else 256
    decode, prefills = configs.table(cap).decode[listed], configs.table(cap).prefill[listed]
    assert configs.paged_decode(cap, head_dim) == decode
    assert configs.paged_prefill(cap, head_dim) == prefills[configs.MANY, configs.MANY]
    for (queries, keys), config in prefills.items():
        assert configs.paged_prefill(cap, head_dim, queries, keys) == config


def test_long_rows_and_short_chunks_of_prompts_differ_on_hopper():
    chosen = [configs.paged_prefill((9, 0), 128, *n) for n in ((8, 1024), (512, 512), (2048, 32768))]
    assert len(set(chosen)) == 3


def test_a_generation_without_a_table_has_attention_all_the_same():
    assert configs.table((12, 0)) == configs.table((0, 0))


def test_ones_own_rows_stand_above_the_package_s(measure):
    before = configs.table((9, 0))
    own = PagedPrefill(64, 32, 4, 2, 168)
    measure((9, 0), prefill=[
        {"head_dim": 128, "queries": None, "keys": 2048, "use": configs.brief(own)},
        {"head_dim": 128, "queries": 99, "keys": 999, "use": configs.brief(own)},
    ])  # fmt: skip
    after = configs.table((9, 0))
    assert after.gemv == before.gemv
    assert configs.paged_prefill((9, 0), 128, 3000, 2000) == own
    assert configs.paged_prefill((9, 0), 128, 99, 2049) == before.prefill[128][configs.MANY, configs.MANY]
    assert configs.paged_prefill((9, 0), 128, 50, 500) == own


def test_attention_of_few_rows_is_one_launch_where_a_table_says_so(measure):
    measure((9, 9))
    assert configs.paged_few((9, 9), 128, 1) is None
    assert not configs.early((9, 9))
    one, two = PagedFew(64, 8, 1, 64), PagedFew(32, 4, 2, 64)
    said = [(128, 16, one), (128, 4, None), (128, 1, two), (256, 2, two)]
    measure((9, 9), few=[{"head_dim": n, "rows": r, "use": configs.brief(use)} for n, r, use in said])
    for rows, wanted in ((1, two), (2, None), (4, None), (5, one), (16, one), (17, None)):
        assert configs.paged_few((9, 9), 80, rows) == wanted
    assert [configs.paged_few((9, 9), 256, rows) for rows in (1, 2, 3)] == [two, two, None]
    assert configs.paged_few((9, 9), 264, 1) is None
    assert configs.early((9, 9))
    measure((9, 9), few=[{"head_dim": 128, "rows": 1, "use": None}])
    assert not configs.early((9, 9))


def test_a_row_that_makes_no_sense_is_refused_with_its_file(measure):
    measure((9, 0), gemv=[{"n": 1, "k": 1, "gated": False, "use": {"rows": 1}}])
    with pytest.raises(Refused, match=r"makes no sense: .*chunk") as refused:
        configs.table((9, 0))
    assert str(table.own((9, 0))) in refused.value.hint


@pytest.mark.parametrize(
    "config",
    [
        Gemv(1, 2, 4),
        PagedPrefill(1, 2, 3, 4),
        PagedDecode(1, 2, 3, 4),
        PagedFew(1, 2, 3, 4),
        Ring(1, 2, 3),
        Wide(1, 2, 3, 4, 5, 6),
        Blas(1, 2, 3, cluster=4),
        None,
    ],
)
def test_a_brief_configuration_is_whole_again(config):
    said = configs.brief(config)
    assert (said and type(config)(**said)) == config
    assert said is None or None not in said.values()


def test_measured_rows_for_4_bit_weights_win_over_rules(measure):
    size = {"n": 16, "k": 64, "gated": False}
    found = [(1, Int4One(4, 2, 3)), (16, Int4Tile(16, 32, 64, 1, 4, 2)), (64, None)]
    measure((9, 9), int4=[{"tokens": most, **size, "use": configs.brief(config)} for most, config in found])
    assert [configs.int4((9, 9), tokens, 16, 64) for tokens in (1, 2, 16, 17, 64)] == [
        found[0][1], found[1][1], found[1][1], None, None,
    ]  # fmt: skip
    assert configs.int4((9, 9), 65, 16, 64) == rules.int4_tile_rule(65, 16, 64, False)


@pytest.mark.parametrize(
    ("said", "known"),
    [("3.6.0", True), ("3.7.1", True), ("3.8.0+git", True), ("3.9.0", False), ("4.0", False)],
)
def test_kernels_in_gluon_are_for_versions_that_are_known(
    monkeypatch: pytest.MonkeyPatch, said: str, known: bool
):
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", said)
    configs.gluon.cache_clear()
    try:
        assert configs.gluon() == known
        assert configs.fetches4((9, 0), 32) == known
        assert not configs.fetches4((8, 0), 32)
    finally:
        configs.gluon.cache_clear()


def test_few_tokens_are_fetched_for_where_gluon_is_known(monkeypatch):
    monkeypatch.setattr(configs, "gluon", lambda: True)
    assert [configs.fetches8((9, 0), tokens) for tokens in (1, 2, 64, 65)] == [False, True, True, False]
    assert not configs.fetches8((10, 0), 2)
    monkeypatch.setattr(configs, "gluon", lambda: False)
    assert not configs.fetches8((9, 0), 2)


def test_large_layers_of_few_tokens_are_fetched_for(monkeypatch):
    large = {"n": 4096, "k": 4096}
    monkeypatch.setattr(configs, "gluon", lambda: True)
    found = [configs.skinny((9, 0), tokens, **large) for tokens in (1, 2, 17, 32, 33)]
    assert found == [None, Ring(128, 16, 4), Ring(128, 32, 4), Ring(128, 32, 4), None]
    assert isinstance(configs.skinny((9, 0), 2, 1000, 1000), Skinny), "small ones are not"
    assert configs.skinny((10, 0), 2, **large) is None
    monkeypatch.setattr(configs, "gluon", lambda: False)
    assert configs.skinny((9, 0), 2, **large) is None
