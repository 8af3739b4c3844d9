"""A level of load from its flags to its numbers."""

import pytest

from headrace.bench.serve import crew
from headrace.bench.serve.arrivals import Load
from headrace.bench.serve.campaign import Campaign
from headrace.bench.serve.connection import Target
from headrace.bench.serve.crew import Progress
from headrace.bench.serve.data import Synthetic
from headrace.bench.serve.dialect import Ask
from headrace.bench.serve.sample import Sample
from headrace.bench.serve.selftest import measure, stub
from tests.bench.serve.made import campaign, level, samples


def test_two_processes_share_a_level():
    seen: list[Progress] = []
    with stub("--interval", "0.005") as url:
        made = Campaign(
            Target.of(url, {}), Ask(model="stub"), Synthetic(tokens_in="20", tokens_out="8"), processes=2,
            limits={"ttft": 600.0}, told=lambda load, progress, points: seen.append(progress),
        )  # fmt: skip
        found = made.level(Load(rate=40.0, requests=30))
        closed = made.level(Load(streams=3, requests=7, duration=20.0), 1)
    assert found.whole.outcomes == {"ok": 30}
    assert found.whole.output_tokens == 240
    assert [sample.scheduled for sample in found.samples] == sorted(
        sample.scheduled for sample in found.samples
    )
    assert len(found.cpu) == 2
    assert found.server is not None
    assert found.server.generated == 240
    assert found.whole.good == 30
    assert seen[-1].running == 0
    assert closed.whole.outcomes == {"ok": 7}


def test_a_worker_that_dies_is_not_overlooked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crew, "WORKER", ("sh", "-c", "cat > /dev/null; exit 3"))
    with pytest.raises(Exception, match="a client process died"):
        campaign().level(Load(streams=1, requests=1, duration=1.0))


def test_a_good_level_has_no_warnings():
    found = level()
    assert found.warnings == []
    assert found.window is not None
    assert found.steady is not None
    assert found.steady.output_per_second == pytest.approx(100, rel=0.03)
    assert found.server is not None
    assert found.server.prefix_hit_rate == 0.25


def test_a_late_client_makes_a_level_invalid():
    assert level(found=samples(lag=0.02)).warnings[0].startswith("invalid: the client was late by 20.0 ms")
    (warning,) = level(found=samples(lag=0.008)).warnings
    assert "more than 5% of the median TTFT" in warning
    assert level(Load(streams=4, duration=20.0), samples(lag=0.02)).warnings == [], "streams are never late"


def test_what_failed_and_what_was_guessed_is_said():
    bad = [
        Sample(0.1 * n, 0.1 * n, ended=1.0, outcome="error", reason="HTTP 500: it broke") for n in range(3)
    ]
    guessed = samples()
    for sample in guessed[:5]:
        sample.counted = False
    refused = Sample(0.5, 0.5, ended=0.6, outcome="refused", reason="HTTP 429: full")
    said = " ".join(level(found=[*guessed, *bad, refused]).warnings)
    assert "4 of 204 requests failed or were refused: 3 x HTTP 500: it broke; 1 x HTTP 429: full" in said
    assert "did not count the tokens of 5 answers" in said


def test_a_server_that_dies_is_told_from_one_that_fails_now_and_then():
    lost = [Sample(n, n, ended=30 + n, outcome="error", reason="connection: reset") for n in range(3)]
    assert level(found=[*samples(), *lost]).dead
    assert "nothing is measured after this" in level(found=lost).warnings[1]
    lost[1].ended = 0.1
    assert not level(found=[*samples(), *lost]).dead
    assert not level(found=[]).dead


def test_nothing_at_all_is_no_traceback():
    found = campaign()._judged(Load(rate=1.0, requests=1), [], 0.0, [], [])
    assert found.whole.sent == 0
    assert found.warnings == []


def test_the_client_knows_its_ceiling():
    while not (found := measure(seconds=0.4, streams=32)).per_second:
        continue  # this machine was too busy to begin in time
    assert found.per_core > 100
    assert 0 <= found.jitter_p50 <= found.jitter_p99
