"""The steady state agrees with a run cut into steps, with Little's law, and moves the right way."""

from itertools import pairwise
from typing import Any

import pytest

from headrace.plan.forecast import KINDS, Forecast
from headrace.plan.replay import Limits, cut
from headrace.plan.workload import Draft
from tests.plan.options import option


def expected(model: str = "llama-3.1-8b", gpu: str = "h200", **more: Any) -> Forecast:
    made = option(model, gpu, **more).forecast
    assert made is not None
    return made


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-0.6b", "qwen3-30b-a3b", "gemma-3-27b"])
@pytest.mark.parametrize("concurrency", [1, 8, 64, 256])
@pytest.mark.parametrize(("tokens_in", "tokens_out"), [(1000, 300), (128, 256), (4000, 50)])
def test_throughput_is_that_of_a_long_run(model: str, concurrency: int, tokens_in: int, tokens_out: int):
    """Ten times as many requests as run at once, one entering where one leaves: the same tokens per second."""
    asked = option(model, work={"tokens_in": tokens_in, "tokens_out": tokens_out, "concurrency": concurrency})
    made, room = asked.forecast, asked.memory
    assert made is not None
    # the first ones have answers of different lengths, so that they do not all leave together
    first = [(tokens_in, max(1, tokens_out * (i + 1) // made.rows)) for i in range(made.rows)]
    requests = first + [(tokens_in, tokens_out)] * (10 * made.rows)
    run = cut(asked.anatomy, requests, Limits(made.rows, room.tokens, room.kv_tokens, room.beside))
    measured = sum(out for _, out in requests) / run.seconds(asked.setup)
    assert made.output_per_s == pytest.approx(measured, rel=0.12)


@pytest.mark.parametrize("concurrency", [1, 7, 100, 900])
@pytest.mark.parametrize("tokens_out", [1, 2, 300])
def test_littles_law(concurrency: int, tokens_out: int):
    made = expected(work={"concurrency": concurrency, "tokens_out": tokens_out})
    assert made.requests_per_s * made.e2e == pytest.approx(concurrency)
    assert made.e2e == pytest.approx(made.ttft + made.tpot * (tokens_out - 1))
    assert made.output_per_s == pytest.approx(made.requests_per_s * tokens_out)
    assert made.ttft_p99 >= made.ttft > 0
    assert made.tpot > 0 or tokens_out == 1


def test_shares_add_up():
    made = expected()
    assert made.shares.keys() == KINDS.keys()
    assert sum(made.shares.values()) == pytest.approx(1)
    assert made.limit in KINDS


def test_what_limits():
    alone, many = expected(work={"concurrency": 1}), expected(work={"concurrency": 512})
    prompts = expected(work={"tokens_in": 4000, "tokens_out": 1, "concurrency": 32})
    long = expected(work={"tokens_in": 30000, "tokens_out": 2000, "concurrency": 24})
    assert (alone.limit, alone.kind) == ("reading weights", "bytes")
    assert (many.limit, many.kind) == ("multiplying with weights", "arithmetic")
    assert prompts.kind == "arithmetic"
    assert long.limit == "reading the KV cache"
    assert expected("qwen3-0.6b", engine="vllm", work={"concurrency": 1}).kind == "overhead"


def test_more_at_once_is_more_throughput_and_more_waiting():
    made = [expected(work={"concurrency": n}) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)]
    for fewer, more in pairwise(made):
        assert more.output_per_s > fewer.output_per_s
        assert more.tpot > fewer.tpot
        assert more.ttft > fewer.ttft
        assert more.cost < fewer.cost


def test_who_finds_no_room_waits_and_gains_nothing():
    crowd = expected(work={"concurrency": 2048})
    room = expected(work={"concurrency": crowd.rows})
    assert crowd.rows == room.rows < 1024
    assert crowd.output_per_s == room.output_per_s
    assert crowd.ttft > room.ttft + 30
    assert crowd.burst > 3 * room.burst


def test_what_does_not_fit_has_no_forecast():
    assert option("llama-3.1-405b").forecast is None
    assert option("llama-3.1-8b", "l4", work={"tokens_in": 60_000}).forecast is None


def test_guesses_pay_while_weights_are_what_limits():
    for concurrency, low, high in ((1, 1.5, 2.2), (512, 0.0, 1.0)):
        work = {"concurrency": concurrency, "tokens_in": 64}
        plain = expected(work=work)
        guessed = expected(work=work | {"draft": Draft(3, 0.6)})
        assert low < guessed.output_per_s / plain.output_per_s < high
    made = [expected(work={"concurrency": 1, "draft": Draft(3, a)}).tpot for a in (0.3, 0.6, 1.0)]
    assert made == sorted(made, reverse=True)


def test_tokens_made_by_guessing():
    assert Draft(1, 0.5).made == 1.5
    assert Draft(3, 0.6).made == pytest.approx(1 + 0.6 + 0.36 + 0.216)
    assert Draft(4, 1.0).made == 5


def test_a_shared_prefix_is_not_computed_again():
    own, shared = expected(), expected(work={"shared": 900})
    assert shared.ttft < own.ttft
    assert shared.output_per_s > 1.3 * own.output_per_s


def test_cost_is_the_price_of_the_time():
    made = expected(price=3.6)
    assert made.cost == pytest.approx(3.6 / 3600 / made.output_per_s * 1e6)
    assert expected(price=3.6, gpus=2).cost > made.cost
    assert expected(price=0.0).cost == 0
