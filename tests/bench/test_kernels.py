"""The cases of the kernels' benchmark: what they check, what they count, what is reported of them."""

from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from headrace.base.errors import UnknownName
from headrace.bench import (
    kernels,
    kernels_attention,
    kernels_eight,
    kernels_int4,
    kernels_linear,
    kernels_rows,
)
from headrace.bench.kernels import KERNELS, Outcome, Selection
from headrace.bench.kernels_attention import Work, alike, ragged
from headrace.bench.kernels_case import Case, Layer, Sizes, Way, draw
from headrace.bench.replay import Limits, Took, copies_of
from headrace.bench.shapes import SHAPES

CPU = torch.device("cpu")
TINY = Sizes("tiny", 32, 48, 4, 2, 16, 90, qk_norm=True)
LIMITS = Limits(1e12, 1e14)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(kernels_rows, "CHECKED_ROWS", 5)


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> Way:
    """float16 everywhere: Triton's interpreter multiplies bfloat16 matrices wrongly."""
    for module in (kernels_attention, kernels_rows):
        monkeypatch.setattr(module, "draw", partial(draw, dtype=torch.float16))
    return Way(kv=torch.float16)


# -- what is selected


@pytest.mark.parametrize("shape", SHAPES)
def test_cases_have_names_of_their_own_and_cost_something(shape: str):
    cases = Selection(KERNELS, (shape,)).cases()
    assert len({(case.kernel, case.name) for _, case in cases}) == len(cases)
    assert {case.kernel for _, case in cases} == set(KERNELS)
    assert all(case.bytes > 0 for _, case in cases)


def test_a_selection_is_some_kernels_of_some_shapes():
    found = Selection(("norm", "decode"), ("qwen3-0.6b", "llama-3.1-8b")).cases()
    assert {(shape, case.kernel) for shape, case in found} == {
        (shape, kernel) for shape in ("qwen3-0.6b", "llama-3.1-8b") for kernel in ("norm", "decode")
    }


@pytest.mark.parametrize(
    "selection", [Selection(("norn",), ("qwen3-0.6b",)), Selection(("norm",), ("qwen9",))]
)
def test_unknown_names_are_refused(selection: Selection):
    with pytest.raises(UnknownName):
        selection.cases()


def test_sizes_say_the_layers_of_a_model():
    layers = {layer.name: layer for layer in Sizes.of("qwen3-0.6b").layers}
    assert (layers["qkv"].n, layers["qkv"].k) == (4096, 1024)
    assert (layers["gate_up"].rows, layers["down"].k) == (6144, 3072)
    assert layers["head"].bytes == 2 * 151936 * 1024
    assert Sizes.of("qwen3-0.6b").qk_norm
    assert not Sizes.of("llama-3.1-8b").qk_norm


# -- what is counted


def test_attention_counts_keys_once_and_scores_that_causality_leaves():
    work = Work("", ((1, 10), (3, 5)))
    assert work.bytes(TINY, torch.bfloat16) == 15 * 2 * 16 * 4 + 4 * 4 * 16 * 4
    assert work.bytes(TINY, torch.float8_e4m3fn) == 15 * 2 * 16 * 2 + 4 * 4 * 16 * 4
    assert work.operations(TINY) == 4 * (10 + 3 + 4 + 5) * 4 * 16
    assert work.means == (2, 7)


def test_only_even_rows_have_a_library():
    assert [w.even for w in (alike(2, 9), alike(2, 9, 9), alike(2, 9, 3), ragged(3, 1, 9))] == [
        True, True, False, False,
    ]  # fmt: skip


def test_a_floor_is_by_bytes_or_by_operations():
    assert LIMITS.floor_us(1e6, 1e6) == pytest.approx(1.0)
    assert LIMITS.floor_us(1e6, 1e9) == pytest.approx(10.0)


def test_inputs_that_take_turns_do_not_fit_into_a_cache():
    assert copies_of(1) == 256
    assert copies_of(1e8) * 1e8 > 3e8
    assert copies_of(1e12) == 2


# -- what is checked


@pytest.mark.parametrize("make", [
    partial(kernels_rows.norm, 3, 32), partial(kernels_rows.silu, 3, 48), partial(kernels_rows.embed, 5, TINY),
    partial(kernels_rows.rotate, 5, TINY, Way()),
    partial(kernels_rows.rotate, 5, TINY, Way(True, torch.float8_e4m3fn)),
    *(partial(kernels_rows.drawn, 2, 40, how) for how in kernels_rows.DRAWS.values()),
    partial(kernels_eight.normed, 32, 3), partial(kernels_eight.gated, 48, 3),
    *(partial(kernels_eight.product, TINY.layers[n], 3, kind) for n in (0, 1, 2) for kind in kernels_eight.KINDS),
    *(partial(kernels_linear.product, TINY.layers[n], tokens, False) for n, tokens in ((0, 1), (2, 1), (4, 3))),
], ids=lambda make: make.func.__name__)  # fmt: skip
def test_a_kernel_that_is_right_is_found_right(make):
    launch = make(2, CPU)
    assert len(launch.calls) == 2
    assert launch.check() <= 1.2e-2  # the interpreter cuts where a GPU rounds
    for call in (launch.calls[-1], *launch.library[-1:]):
        call()


def test_one_launch_of_few_rows_that_is_right_is_found_right(halves: Way, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels_linear, "draw", partial(draw, dtype=torch.float16))
    work, config = alike(2, 40), kernels_attention.PagedFew(16, 2, 1, 16)
    make = partial(kernels_attention.few, work, TINY, halves, config=config)
    launch = kernels_attention.between_products(make, work, TINY, 2, CPU)
    assert launch.check() <= 6e-3
    assert len(launch.calls) == 2
    launch.calls[1]()


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("kernel", ["decode", "decode_after_store", "prefill"])
def test_attention_that_is_right_is_found_right(halves: Way, kernel: str, fixed: bool):
    work = Work("", ((1, 20), (1, 3))) if "decode" in kernel else Work("", ((5, 20), (3, 3)))
    launch = getattr(kernels_attention, kernel)(work, TINY, halves._replace(fixed=fixed), 1, CPU)
    assert launch.check() <= 6e-3


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("layer", [Layer("", 32, 128, True, True), Layer("", 16, 256)])
def test_4_bit_products_that_are_right_are_found_right(
    halves: Way, monkeypatch: pytest.MonkeyPatch, layer: Layer, tokens: int
):
    for module in (kernels_int4, kernels_linear):
        monkeypatch.setattr(module, "draw", partial(draw, dtype=torch.float16))
    launch = kernels_int4.product(layer, tokens, 2, CPU)
    assert len(launch.calls) == 2
    assert launch.check() <= 6e-3
    for config in (kernels_int4.Int4Few(128, 4), kernels_int4.Int4Tile(16, 32, 64, 1, 4, 2), None):
        if tokens > 1 or isinstance(config, kernels_int4.Int4Few):
            assert kernels_int4.trial(layer, tokens, config, 1, CPU).calls[0]() is not None


def test_a_kernel_that_is_wrong_is_found_wrong(halves: Way, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels_attention, "attend", lambda q, k, v, scores: torch.zeros_like(q))
    assert not kernels_attention.decode(alike(1, 5), TINY, halves, 1, CPU).check() <= 6e-3
    monkeypatch.setattr(
        kernels_rows, "normalize", lambda x, r, *rest: (x.new_full(x.shape, float("nan")), x + r)
    )
    assert kernels_rows.norm(2, 32, 1, CPU).check() == float("inf")


def test_bytes_of_a_layer_are_its_weight_and_what_goes_in_and_out():
    assert kernels_linear.moved(Layer("o", 8, 4), 3) == 2 * 8 * 4 + 3 * 2 * (4 + 8)
    assert kernels_linear.moved(Layer("head", 8, 4), 3) == 2 * 8 * 4 + 3 * (2 * 4 + 4 * 8)
    assert kernels_linear.moved(Layer("qkv", 8, 4, normed=True), 3) == 2 * 8 * 4 + 3 * 2 * (3 * 4 + 8)


# -- what is said


def outcome(error: float = 0.0, took: float | None = 2.0, library: float | None = 3.0) -> Outcome:
    case = Case("norm", "1 token", 1e6, lambda copies, device: pytest.fail("not now"))
    done = took and Took(took, 0.1)
    return Outcome("some", case, error, done, library and Took(library, 0.1))


def test_an_outcome_has_its_time_and_what_it_is_worth():
    measures = {m.name: (m.value, m.better) for m in outcome().measures(LIMITS)}
    assert measures == {
        "some norm 1 token: time": (2.0, "lower"),
        "some norm 1 token: floor by time": (50.0, "higher"),
        "some norm 1 token: against library": (1.5, "higher"),
    }
    assert len(list(outcome(library=None).measures(LIMITS))) == 2
    assert not list(outcome(took=None).measures(LIMITS))


def test_nan_is_not_sound():
    assert outcome().sound
    assert not outcome(error=float("nan")).sound


def test_what_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    selection = Selection(("norm",), ("qwen3-0.6b",))
    monkeypatch.setattr(kernels, "_check_all", lambda selection, count: [1.0] + [0.0] * (count - 1))
    monkeypatch.setattr(kernels, "_timed", lambda outcome: outcome._replace(took=Took(1.0, 0.0)))
    said: list[str] = []
    first, *rest = kernels.run(selection, said.append)
    assert first.took is None
    assert all(each.took for each in rest)
    assert len(said) == 1 + 1 + len(rest)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("way", [Way(), Way(True), Way(kv=torch.float8_e4m3fn)], ids=str)
def test_every_small_case_is_sound_on_the_device(kernel: str, way: Way):
    if way.kv.itemsize == 1 and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs compute capability 8.9")
    for shape, case in Selection((kernel,), ("smollm2-135m",), way).cases():
        if case.bytes < 3e8 and case.operations < 1e12:
            found = kernels.check(case, torch.device("cuda"))
            assert found <= case.bound, f"{shape} {case.kernel} {case.name}: {found}"
