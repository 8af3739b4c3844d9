"""What tuning tries, and what it makes of the times."""

import pytest
import torch

pytest.importorskip("triton")

from headrace.bench import kernels_attention, kernels_tune
from headrace.bench.kernels_attention import DECODES
from headrace.bench.kernels_case import Layer, Sizes
from headrace.bench.kernels_tune import BETTER, Trial, choose, gemvs, rings, skinnies, wides
from headrace.bench.replay import Limits
from headrace.kernels import configs, table
from headrace.kernels.choices import Gemv, PagedDecode, Ring, Skinny, Wide

CPU = torch.device("cpu")
SIZES = [Sizes.of("llama-3.1-8b"), Sizes.of("qwen3-0.6b")]
LAYERS = [layer for sizes in SIZES for layer in sizes.layers]
LIMITS = Limits(1e12, 1e14)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda y: f"{y.name}-{y.n}")
def test_every_layer_has_a_moderate_number_of_distinct_candidates(layer: Layer):
    for options in (
        list(gemvs(layer)),
        *(list(skinnies(layer, tokens)) for tokens in kernels_tune.SKINNY_TOKENS),
    ):
        assert 3 <= len(options) <= 16
        assert len(set(options)) == len(options)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda y: f"{y.name}-{y.n}")
def test_tiles_are_powers_of_two_and_splits_leave_work(layer: Layer):
    for option in gemvs(layer):
        assert option.rows & (option.rows - 1) == 0
        assert option.chunk & (option.chunk - 1) == 0
    for option in skinnies(layer, 16):
        assert option.split * 2 * option.k <= layer.k


@pytest.mark.parametrize("tokens", [64, 128, 256, 512, 8192])
def test_tiles_suit_their_tokens_and_fit_into_shared_memory(tokens: int):
    for layer in LAYERS:
        tried = list(wides(layer, tokens, 132))
        assert 2 <= len(tried) <= 14
        assert len(set(tried)) == len(tried)
        for config in tried:
            assert config.m < 2 * max(tokens, 64)
            assert (config.m + config.n) * config.k * 2 * config.stages * config.programs <= 227 * 1024


@pytest.mark.parametrize("layer", LAYERS, ids=lambda y: f"{y.name}-{y.n}")
def test_rings_are_cut_until_every_processor_has_a_part(layer: Layer):
    tried = list(rings(layer, 32, 132))
    assert 1 <= len(tried) <= 8
    assert len(set(tried)) == len(tried)
    assert {config.rows for config in tried} == ({256} if layer.gated else {128, 256})
    for rows in {config.rows for config in tried}:
        tiles, parts = -(-layer.rows // rows), [config.parts for config in tried if config.rows == rows]
        assert tiles * max(parts) >= 132
        assert max(parts) == 1 or tiles * max(parts) < 264
        assert 4 * tiles * min(parts) >= 132


def test_every_prompt_is_served_by_one_row_of_the_table():
    assert {most for most, _ in kernels_tune.served_prompts()} == set(kernels_tune.PROMPTS)


def test_attention_s_trials_make_rows_that_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels_attention, "multiprocessors", lambda device: 132)
    trials = list(kernels_tune.attention_trials(SIZES[1], ("decode", "prefill"), LIMITS, CPU))
    rows = choose([(trial, trial.floor_us) for trial in trials])
    table.write(tmp_path / "t.json", rows, {})
    made = configs._table(table.read(tmp_path / "t.json"))
    assert made.decode[128] in kernels_tune.DECODES
    assert {t.make.args[0] for t in trials if t.kind == "decode"} == set(DECODES)
    assert set(made.few[128]) == {1, 4, 16}
    assert {t.config for t in trials if t.kind == "few"} == {None, *kernels_tune.FEWS}
    assert list(made.prefill[128]) == sorted(kernels_tune.PROMPTS)


def test_linear_trials_have_the_library_among_them_but_for_one_token(monkeypatch):
    assert {t.kind for t in kernels_tune.linear_trials(Layer("o", 1024, 512), CPU)} == {"gemv", "skinny"}
    monkeypatch.setattr(configs, "capability", lambda device: (9, 0))
    monkeypatch.setattr(configs, "gluon", lambda: False)
    trials = list(kernels_tune.linear_trials(Layer("o", 1024, 512), CPU))
    libraries = [(t.kind, dict(t.row)["tokens"]) for t in trials if t.config is None]
    assert libraries == [("skinny", n) for n in (16, 32, 64)] + [
        ("middle", n) for n in (64, 128, 256, 512, None)
    ]
    assert not [t for t in trials if isinstance(t.config, Ring)], "a Triton whose Gluon is not known"
    monkeypatch.setattr(configs, "gluon", lambda: True)
    more = kernels_tune.linear_trials(Layer("o", 1024, 512), CPU)
    served = {(t.kind, dict(t.row)["tokens"], t.config.tokens) for t in more if isinstance(t.config, Ring)}
    assert served == {("skinny", n, n) for n in (16, 32, 64)}
    odd = kernels_tune.linear_trials(Layer("o", 1024, 516), CPU)
    assert not [t for t in odd if isinstance(t.config, Ring)], "rows that TMA cannot read"
    heads = list(kernels_tune.linear_trials(Layer("head", 1024, 512), CPU))
    assert not [t for t in heads if t.kind == "middle" and dict(t.row)["tokens"] is None]


def test_trials_of_eight_bits_make_rows_that_can_be_read(tmp_path, monkeypatch):
    layer = Layer("gate_up", 4096, 1024, gated=True)
    assert {t.kind for t in kernels_tune.eight_trials(layer, CPU)} == {"gemv8"}
    monkeypatch.setattr(configs, "capability", lambda device: (9, 0))
    trials = list(kernels_tune.eight_trials(layer, CPU))
    assert {dict(t.row)["kind"] for t in trials if t.config is None} == {"fp8"}
    rows = choose([(each, 1.0 if each.config else 2.0) for each in trials])
    table.write(tmp_path / "t.json", rows, {})
    made = configs._table(table.read(tmp_path / "t.json"))
    assert set(made.gemv8) == {(4096, 1024, True)}
    assert {key[:3] for key in made.skinny8} == {(n, 8192, 1024) for n in (16, 32, 64)}
    assert {key[3] for key in made.wide8} == {"fp8", "int8"}


def trial(config, row=(("n", 1),), floor=1.0, kind="middle") -> Trial:
    return Trial(kind, row, config, 1.0, lambda copies, device: pytest.fail("not now"), floor)


def test_ours_must_beat_the_library_clearly():
    ours = Wide(64, 128, 64, 4, 4)
    for us, wanted in ((BETTER + 0.01, None), (BETTER - 0.01, configs.brief(ours))):
        assert choose([(trial(None), 1.0), (trial(ours), us)]) == {"middle": [{"n": 1, "use": wanted}]}


def test_a_ring_is_written_only_where_it_wins(tmp_path):
    ring, tiles, wide = Ring(128, 64, 4), Skinny(32, 128, 2, 4, 4), Wide(64, 128, 64, 4, 4)
    row = ("tokens", 64), ("n", 8), ("k", 16), ("gated", False)
    for us, middle, wanted in ((0.9, 0.95, ring), (0.97, 1.0, tiles), (0.9, 0.8, None)):
        few = [(trial(None, row, kind="skinny"), 1.0), (trial(tiles, row, kind="skinny"), 0.96)]
        many = [(trial(None, row), 1.0), (trial(wide, row), middle)]
        rows = choose([*few, (trial(ring, row, kind="skinny"), us), *many])
        table.write(tmp_path / "t.json", rows, {})
        assert configs._table(table.read(tmp_path / "t.json")).skinny == {(64, 8, 16, False): wanted}


def test_works_count_by_their_floors_and_a_candidate_must_serve_all():
    one, two, partial = (PagedDecode(n, 4, 2, 256) for n in (1, 2, 4))
    times = [
        (trial(one, floor=1.0), 2.0), (trial(one, floor=100.0), 100.0),
        (trial(two, floor=1.0), 1.0), (trial(two, floor=100.0), 150.0),
        (trial(partial, floor=1.0), 0.1),
    ]  # fmt: skip
    assert choose(times) == {"middle": [{"n": 1, "use": configs.brief(two)}]}


def test_kinds_and_rows_stay_apart():
    rows = choose([
        (trial(Gemv(1, 2, 4), kind="gemv"), 1.0), (trial(Gemv(2, 2, 4), (("n", 2),), kind="gemv"), 5.0),
        (trial(Wide(1, 2, 3, 4, 5)), 3.0),
    ])  # fmt: skip
    assert [row["n"] for row in rows["gemv"]] == [1, 2]
    assert len(rows["middle"]) == 1
