"""Advice gains what it says it gains, is sorted by the goal, and says when it is not measured."""

from dataclasses import replace

import pytest

from headrace.plan.advice import GOALS, Advice, advise
from tests.plan.options import option


def by_flags(found: list[Advice]) -> dict[str, Advice]:
    return {advice.flags: advice for advice in found}


def test_each_is_the_same_model_with_one_change():
    asked = option()
    now = asked.forecast
    assert now is not None
    found = advise(asked)
    assert len(found) > 5
    for advice in found:
        then = advice.option.forecast
        assert then == advice.forecast
        assert advice.throughput == pytest.approx(then.output_per_s / now.output_per_s)
        assert advice.cost == pytest.approx(then.cost / now.cost)
        assert advice.option != asked
    fp8 = by_flags(found)["--scheme fp8"].forecast
    assert fp8 == replace(asked, scheme="fp8").forecast


@pytest.mark.parametrize("goal", GOALS)
def test_best_first(goal: str):
    found = [GOALS[goal](advice.forecast) for advice in advise(option(), goal)]
    assert found == sorted(found)


def test_the_kinds_of_change_that_are_tried():
    flags = " ".join(by_flags(advise(option())))
    changes = ("--scheme fp8", "--kv fp8", "--gpus 2", "--draft 3,0.6")
    loads = ("prefix=500", "concurrency=32", "concurrency=128")
    assert all(said in flags for said in (*changes, *loads))
    assert "--scheme w4a16" in by_flags(advise(option(work={"concurrency": 1})))


def test_what_a_device_cannot_multiply_is_not_proposed():
    assert "--scheme fp8" not in by_flags(advise(option(gpu="a100-80gb")))
    assert "--scheme int8" in by_flags(advise(option(gpu="a100-80gb")))
    assert "--scheme nvfp4" not in by_flags(advise(option()))
    assert "--scheme nvfp4" in by_flags(advise(option(gpu="b200")))


def test_what_is_there_already_is_not_proposed():
    found = by_flags(advise(option(scheme="fp8", kv="fp8", work={"shared": 500})))
    assert not {"--scheme fp8", "--kv fp8"} & found.keys()
    assert not any("prefix" in flags for flags in found)


def test_where_nothing_fits_what_would_fit_is_proposed():
    asked = option("llama-3.1-70b", "h100", work={"concurrency": 8})
    assert asked.forecast is None
    found = by_flags(advise(asked))
    assert {"--scheme w4a16", "--gpus 2", "--gpus 4"} <= found.keys()
    assert all(advice.throughput is None for advice in found.values())


def test_a_shorter_longest_request_where_the_cache_is_too_small():
    asked = option("llama-3.1-8b", "l4")
    assert f"--max-len {asked.memory.longest}" in by_flags(advise(asked))


def test_what_no_run_stands_behind_is_marked():
    found = by_flags(advise(option()))
    assert found["--draft 3,0.6"].borrowed
    assert found["--gpus 2"].borrowed
    assert found["--kv fp8"].borrowed
    assert all(advice.borrowed for advice in advise(option("qwen3-30b-a3b")))
    assert not found['--workload "in=1000,out=300,concurrency=128"'].borrowed
    assert not by_flags(advise(option(engine="vllm")))["--scheme fp8"].borrowed
