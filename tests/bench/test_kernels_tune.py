"""What tuning tries, and what it makes of the times."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from headrace.base.errors import UnknownName
from headrace.bench import kernels_attention, kernels_tune
from headrace.bench.kernels_attention import DECODES
from headrace.bench.kernels_case import Launch, Layer, Sizes
from headrace.bench.kernels_layer import Block, Candidate
from headrace.bench.kernels_tune import (
    BETTER,
    TUNED,
    Trial,
    candidates,
    choose,
    compiled,
    fews,
    gemvs,
    in_blocks,
    rings,
    skinnies,
    tune,
    wides,
)
from headrace.bench.replay import Limits, Took
from headrace.kernels import configs, table
from headrace.kernels.choices import Blas, Gemv, PagedDecode, Ring, Skinny, Wide

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
    tried = list(wides(tokens))
    assert 2 <= len(tried) <= 7
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


def test_of_few_tokens_the_head_alone_is_timed_by_itself(monkeypatch):
    head, other = Layer("head", 1024, 512), Layer("o", 1024, 512)
    assert {t.kind for t in kernels_tune.linear_trials(head, CPU)} == {"gemv", "skinny"}
    assert not list(kernels_tune.linear_trials(other, CPU))
    monkeypatch.setattr(configs, "capability", lambda device: (9, 0))
    monkeypatch.setattr(configs, "gluon", lambda: False)
    libraries = [
        [(t.kind, dict(t.row)["tokens"]) for t in kernels_tune.linear_trials(layer, CPU) if t.config is None]
        for layer in (head, other)
    ]
    many = [("middle", n) for n in (96, 128, 160, 192, 224, 256, 384, 512, 640, 768, 896, 1024)]
    more = [("middle", n) for n in (2048, 4096, None)]
    assert libraries == [[("skinny", n) for n in (16, 32, 64)] + many, many + more]
    assert not list(kernels_tune.linear_trials(Layer("o", 1024, 516), CPU)), "rows that TMA cannot read"


def test_algorithms_of_the_library_are_tried_for_many_tokens_and_the_most_of_a_few(monkeypatch, tmp_path):
    layer, found = Layer("o", 1024, 512), Blas(66, 20, 35, cluster=3)
    monkeypatch.setattr(configs, "capability", lambda device: (9, 0))
    monkeypatch.setattr(configs, "gluon", lambda: False)
    monkeypatch.setattr(kernels_tune.blas, "candidates", lambda m, others, n, k, *_: [found])
    assert [tokens for tokens in (16, 32, 64) if found in list(fews(layer, tokens, CPU))] == [64]
    trials = list(kernels_tune.linear_trials(layer, CPU))
    assert sum(t.config == found for t in trials) == sum(t.config is None for t in trials) == 15
    rows = choose([(t, 1.0 if t.config == found and dict(t.row)["tokens"] != 256 else 2.0) for t in trials])
    kernels_tune.add(rows, "skinny", (("tokens", 64), *kernels_tune.layer_row(layer)), found)
    table.write(tmp_path / "t.json", rows, {})
    made = configs._table(table.read(tmp_path / "t.json"))
    assert made.skinny == {(64, 1024, 512, False): None}
    assert made.middle[64, 1024, 512, False] == made.middle[configs.MANY, 1024, 512, False] == found
    assert made.middle[256, 1024, 512, False] is None


def test_few_tokens_have_rings_and_tiles_where_these_can_be_compiled(monkeypatch):
    def kinds(layer: Layer) -> list[set[type]]:
        return [{type(one) for one in fews(layer, tokens, CPU)} for tokens in (16, 32, 64)]

    layer, plain = Layer("o", 4096, 1024), {type(None), Skinny}
    assert kinds(layer) == [plain] * 3
    monkeypatch.setattr(configs, "capability", lambda device: (9, 0))
    monkeypatch.setattr(configs, "gluon", lambda: False)
    assert kinds(layer) == [plain, plain, plain | {Wide}]
    monkeypatch.setattr(configs, "gluon", lambda: True)
    assert kinds(layer) == [plain | {Ring}, plain | {Ring}, plain | {Ring, Wide}]
    assert kinds(Layer("o", 4096, 1028)) == [plain] * 3
    assert {one.tokens for one in fews(layer, 32, CPU) if isinstance(one, Ring)} == {32}


def test_trials_of_eight_bits_make_rows_that_can_be_read(tmp_path, monkeypatch):
    layer = Layer("gate_up", 4096, 1024, gated=True)
    assert not list(kernels_tune.eight_trials(layer, CPU))
    monkeypatch.setattr(configs, "capability", lambda device: (9, 0))
    trials = list(kernels_tune.eight_trials(layer, CPU))
    assert {dict(t.row)["kind"] for t in trials if t.config is None} == {"fp8"}
    rows = choose([(each, 1.0 if each.config else 2.0) for each in trials])
    table.write(tmp_path / "t.json", rows, {})
    made = configs._table(table.read(tmp_path / "t.json"))
    assert {key[:3] for key in made.skinny8} == {(n, 8192, 1024) for n in (16, 32, 64)}
    assert {key[3] for key in made.wide8} == {"fp8", "int8"}


# -- inside blocks


def test_a_block_s_products_have_candidates_for_few_tokens():
    found = list(candidates(TUNED, SIZES[0], CPU))
    blocks = [Block(SIZES[0], tokens) for tokens in (1, 16, 32, 64)] + [Block(SIZES[0], 1, True)]
    assert {one.block for one in found} == set(blocks)
    for block in blocks:
        assert {one.name for one in found if one.block == block} == {"qkv", "o", "gate_up", "down"}
    assert {one.block for one in candidates(("linear8",), SIZES[0], CPU)} == {blocks[-1]}
    assert not list(candidates(("decode",), SIZES[0], CPU))


def test_what_is_fastest_in_a_block_makes_rows_that_can_be_read(tmp_path, monkeypatch):
    """The last of the candidates of each product, as if it were the fastest."""
    monkeypatch.setattr(configs, "capability", lambda device: (9, 0))
    monkeypatch.setattr(
        kernels_tune, "tune_block", lambda block, some, say: {n: c[-1] for n, c in some.items()}
    )
    found = list(candidates(("linear", "linear8"), SIZES[0], CPU))
    table.write(tmp_path / "t.json", in_blocks(found, print), {})
    made = configs._table(table.read(tmp_path / "t.json"))
    shapes = {(layer.n, layer.k, layer.gated): layer for layer in SIZES[0].layers[:-1]}
    assert set(made.gemv) == set(made.gemv8) == set(shapes)
    assert set(made.skinny) == {(tokens, *shape) for tokens in (16, 32, 64) for shape in shapes}
    assert set(made.middle) == {(64, *shape) for shape in shapes}
    for shape, layer in shapes.items():
        assert made.gemv[shape] == list(gemvs(layer))[-1]
        assert made.skinny[32, *shape] == list(fews(layer, 32, CPU))[-1]
        assert (made.skinny[64, *shape], made.middle[64, *shape]) == (None, list(wides(64))[-1])


def test_of_models_that_share_a_product_the_later_one_s_row_stays(monkeypatch):
    early, late = Gemv(1, 4096, 8), Gemv(2, 4096, 8)
    alike = replace(SIZES[0], name="alike", vocab=1)
    found = [Candidate(Block(SIZES[0], 1), "o", early), Candidate(Block(alike, 1), "o", late)]
    monkeypatch.setattr(
        kernels_tune, "tune_block", lambda block, some, say: {n: c[-1] for n, c in some.items()}
    )
    rows = table.merged({}, in_blocks(found, print))
    assert [row["use"] for row in rows["gemv"]] == [configs.brief(late)]


# -- all of it


@pytest.fixture
def a_device(monkeypatch) -> None:
    """A GPU as far as tuning asks for one, on which nothing is compiled."""
    for name, value in (("capability", (9, 0)), ("multiprocessors", 132)):
        monkeypatch.setattr(configs, name, lambda device, value=value: value)
    for name, value in (("get_device_name", "a GPU"), ("synchronize", None), ("empty_cache", None)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(kernels_tune, "pool", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(kernels_tune, "measure_limits", lambda: LIMITS)


def test_what_a_gpu_is_too_small_for_is_left_out(a_device: None):
    def make(config, copies, device) -> Launch:
        def call() -> None:
            if config.warps == 8:
                raise OutOfResources(300_000, 232_448, "shared memory")

        return Launch([call], lambda: 0.0)

    made = [
        trial(Gemv(1, 64, warps))._replace(make=partial(make, Gemv(1, 64, warps))) for warps in (4, 8, 16)
    ]
    assert [one.config.warps for one in compiled(made)] == [4, 16]


def test_tuning_writes_what_is_found_by_itself_and_in_blocks(a_device: None, tmp_path, monkeypatch):
    sent: list[Trial | Candidate] = []

    def compile_all(made):
        sent.extend(pickle.loads(pickle.dumps(each)) for each in made)  # as it goes to other processes
        fake = Launch([], float)
        return [each._replace(make=lambda *_: fake) if isinstance(each, Trial) else each for each in sent]

    monkeypatch.setattr(kernels_tune, "compiled", compile_all)
    monkeypatch.setattr(kernels_tune, "replay", lambda calls, **_: Took(1.0, 0.0))
    monkeypatch.setattr(
        kernels_tune, "tune_block", lambda block, some, say: {n: c[0] for n, c in some.items()}
    )
    path = tmp_path / "t.json"
    table.write(path, {"gemv": [{"n": 8, "k": 8, "gated": False, "use": configs.brief(Gemv(1, 8, 4))}]}, {})
    said: list[str] = []
    assert tune(TUNED, ("qwen3-0.6b",), path, said.append) == path
    assert said[0] == f"compiling {len(sent)} candidates"
    made = configs._table(table.read(path))
    layers = [(layer.n, layer.k, layer.gated) for layer in SIZES[1].layers]
    assert set(made.gemv) == {(8, 8, False), *layers}
    assert set(made.skinny) == {(tokens, *layer) for tokens in (16, 32, 64) for layer in layers}
    assert json.loads(path.read_text())["about"]["gpu"] == "a GPU"


def test_other_kernels_are_not_tuned(tmp_path):
    with pytest.raises(UnknownName):
        tune(("norm",), ("qwen3-0.6b",), tmp_path / "t.json", print)


# -- choice


def trial(config, row=(("n", 1),), floor=1.0, kind="middle") -> Trial:
    return Trial(kind, row, config, 1.0, lambda copies, device: pytest.fail("not now"), floor)


def test_ours_must_beat_the_library_clearly():
    ours = Wide(64, 128, 64, 4, 4)
    for us, wanted in ((BETTER + 0.01, None), (BETTER - 0.01, configs.brief(ours))):
        assert choose([(trial(None), 1.0), (trial(ours), us)]) == {"middle": [{"n": 1, "use": wanted}]}


def test_a_ring_is_written_only_where_it_wins_and_tiles_for_many_tokens_as_such(tmp_path):
    ring, tiles, wide = Ring(128, 64, 4), Skinny(32, 128, 2, 4, 4), Wide(64, 128, 64, 4, 4)
    row, key = (("tokens", 64), ("n", 8), ("k", 16), ("gated", False)), (64, 8, 16, False)
    for us, many, few in ((0.9, 0.95, ring), (0.97, 1.0, tiles), (0.9, 0.8, None), (0.99, 0.99, tiles)):
        times = {None: 1.0, tiles: 0.96, ring: us, wide: many}
        rows = choose([(trial(config, row, kind="skinny"), each) for config, each in times.items()])
        table.write(tmp_path / "t.json", rows, {})
        made = configs._table(table.read(tmp_path / "t.json"))
        assert (made.skinny, made.middle) == ({key: few}, {key: wide if few is None else None})


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
