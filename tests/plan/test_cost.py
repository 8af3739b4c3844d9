"""The roofline: by hand for one step, and the right way up for every change."""

import pytest

from headrace.plan.cost import Work, joined, parts
from headrace.plan.efficiency import ENGINES
from tests.plan.options import option

VLLM = ENGINES["vllm"].on["gpu"]


def decode(rows: float, context: float, kinds: int = 1) -> Work:
    none = (0.0,) * kinds
    return Work(rows, rows, (rows * context,) * kinds, none, none)


def test_a_step_of_one_row_by_hand():
    """llama-3.1-8b on an H200 at 200 keys: each part from its own formula."""
    reach = ENGINES["headrace"].on["gpu"]
    made = parts(option().setup, decode(1, 200))
    read = 4.8e12 * reach["weights.bf16"]
    assert made.weights == pytest.approx((6_979_321_856 + 266_240) * 2 / read)
    assert made.arithmetic == pytest.approx(2 * 6_979_321_856 / (989e12 * reach["matmul.bf16"]))
    assert made.head == pytest.approx(525_336_576 * 2 / read, rel=1e-3)
    assert made.kv == pytest.approx(131_072 * 200 / (4.8e12 * reach["kv"]), rel=1e-3)
    assert made.overhead == pytest.approx(
        (reach["step_us"] + 32 * reach["layer_us"] + reach["row_us"]) * 1e-6
    )
    assert (made.attention, made.reduce) == (0, 0)
    assert made.total == pytest.approx(made.layers + made.head + made.kv + made.moves + made.overhead)


def test_no_efficiency_beats_the_floor():
    """The published floor of one H200: 15.0 GB of weights at what the card does, 3.5 ms."""
    for engine in ("headrace", "vllm"):
        assert parts(option(engine=engine).setup, decode(1, 1)).total > 3.2e-3


@pytest.mark.parametrize(("one", "other"), [(1.0, 0.0), (1.0, 1.0), (3.0, 2.0)])
def test_two_limits_joined(one: float, other: float):
    assert max(one, other) <= joined(one, other) <= one + other


def test_a_mixture_reads_the_experts_that_are_taken():
    """128 experts, 8 per token: 1 token reads 8; many tokens read nearly all, and never more."""
    setup = option("qwen3-30b-a3b").setup
    read = 4.8e12 * setup.reach["weights.bf16"]
    fixed = setup.anatomy.linear + setup.anatomy.small
    one, many = (parts(setup, decode(rows, 10)).weights * read / 2 - fixed for rows in (1, 1000))
    assert one == pytest.approx(setup.anatomy.chosen)
    assert many == pytest.approx(setup.anatomy.routed)


def test_narrow_weights_are_read_faster_and_not_multiplied_faster():
    wide, narrow = (
        parts(option(engine="vllm", scheme=name).setup, decode(1, 10)) for name in ("bf16", "w4a16")
    )
    assert narrow.weights < wide.weights
    assert narrow.arithmetic > wide.arithmetic


def test_devices_share_the_work_and_pay_for_it():
    one, two = (parts(option(gpus=n).setup, decode(64, 1000)) for n in (1, 2))
    assert two.weights == pytest.approx(one.weights / 2)
    assert two.kv == pytest.approx(one.kv / 2)
    assert one.reduce == 0 < two.reduce
    assert one.total / 2 < two.total < one.total


def test_a_latent_cache_is_small_to_read_and_dear_to_multiply():
    setup = option("deepseek-v3", gpus=8).setup
    assert parts(setup, decode(256, 4000)).kv > 256 * 4000 * 70_272 / (4.8e12 * setup.reach["kv"])


def test_what_all_rows_share_is_read_from_the_cache():
    work = decode(64, 2000)
    alone = parts(option().setup, work).kv
    assert parts(option().setup, work._replace(near=(64 * 1900.0,))).kv < alone / 2


def test_recurrent_states_are_read_and_written_by_every_row():
    setup = option("qwen3-next-80b-a3b").setup
    few, many = (parts(setup, decode(rows, 0, 2)).kv for rows in (1, 64))
    state = 36 * (4 * 32 * 128 * 128 + 2 * 8192 * 3)
    assert few == pytest.approx(2 * state / (4.8e12 * setup.reach["kv"]))
    assert many == pytest.approx(64 * few)


def test_a_device_without_fp8_multiplies_in_bf16():
    made = parts(option("llama-3.1-8b", "a100-80gb", scheme="fp8").setup, decode(512, 1))
    assert made.arithmetic == pytest.approx(512 * 2 * 6_979_321_856 / (312e12 * made_reach("fp8")))


def made_reach(scheme: str) -> float:
    return ENGINES["headrace"].on["gpu"].of("matmul", scheme)
