"""The speed benchmarks do the work they are named for. Their numbers are nobody's business here."""

from pathlib import Path

import pytest

from headrace.api.llm import LLM
from headrace.base.errors import Broken, TooLong
from headrace.bench import host, latency, masks, startup
from headrace.bench.throughput import time_workload
from headrace.bench.workloads import custom
from tests import tiny


def test_throughput_times_every_repeat(llm: LLM):
    said: list[str] = []
    found = time_workload(llm, custom(3, 5, 7, llm.intake.vocab, 256), 2, 0.8, said.append)
    assert len(said) == 2
    measures = {m.name.split(": ")[1]: m.value for m in found}
    assert measures["output"] == pytest.approx(21 / measures["time"])
    assert measures["total"] == pytest.approx(36 / measures["time"])
    assert "per token" not in measures


def test_one_stream_has_a_time_per_token(llm: LLM):
    time, *_, per_token = time_workload(llm, custom(1, 5, 7, llm.intake.vocab, 256), 1, 0.0)
    assert per_token.value == pytest.approx(time.value / 7 * 1000)


def test_latency_has_percentiles_of_both(llm: LLM):
    names = [m.name for m in latency.measure(llm, 5, 6, 2, 0.8)]
    assert names == [f"{what} p{share}" for what in ("TTFT", "ITL") for share in (50, 90, 99)] + ["ITL mean"]
    assert [m.name for m in latency.measure(llm, 5, 1, 1, 0.8)] == ["TTFT p50", "TTFT p90", "TTFT p99"]


def test_what_a_model_cannot_do_in_full_is_refused_before_it_is_timed(llm: LLM):
    with pytest.raises(TooLong, match="a request of 257 tokens, prompt and answer; this model takes 256"):
        time_workload(llm, custom(2, 250, 7, llm.intake.vocab, 300), 1, 0.0)
    with pytest.raises(TooLong, match="300 tokens"):
        latency.measure(llm, 100, 200, 1, 0.0)


def test_host_counts_rows_and_tokens():
    costs = host.measure(4, 40, 6, 64)
    assert costs.tokens == 4 * (40 + 5)
    assert costs.steps >= 6
    assert all(m.value > 0 for m in costs.measures("x"))


def test_masks_are_timed_for_grammars_that_all_differ(at: Path):
    words = tiny.tokenizer(at)
    measures = masks.measure(words, words.vocab_size, 3, 12)
    assert [m.name.split(": ")[1] for m in measures] == ["compile", "mask", "apply", "follow"]
    assert all(m.value > 0 for m in measures)


def test_startup_says_how_it_failed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(startup, "_SCRIPT", "raise ValueError('no file or folder')")
    with pytest.raises(Broken, match="did not start: ValueError: no file or folder"):
        startup.measure({}, 1)


@pytest.mark.slow
def test_startup_has_every_stage(at: Path):
    measures = startup.measure({"model": str(at), **tiny.SMALL}, 1)
    assert [m.name for m in measures] == list(startup.STAGES)
    assert measures[-1].value == pytest.approx(sum(m.value for m in measures[:-1]))
