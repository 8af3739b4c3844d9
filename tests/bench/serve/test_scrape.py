"""The server's numbers, read and joined."""

import pytest

from headrace.bench.serve.connection import Target
from headrace.bench.serve.scrape import Point, Scraper, join, read, shown
from headrace.bench.serve.selftest import stub
from tests.looped import wait_for

TEXT = """# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="a} b"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.5
vllm:generation_tokens_total 1e3
vllm:prompt_tokens_total{engine="0"} nonsense
vllm:time_to_first_token_seconds_sum{engine="0"} 4.5
other{x="1"} 7
"""


def test_series_are_added_up_and_the_fullest_cache_counts():
    assert read(TEXT) == {"running": 5, "kv_usage": 0.5, "generated": 1000, "ttft_sum": 4.5}


def test_two_moments_make_rates_and_means():
    names = ("running", "lookups", "hits", "queue_sum", "queue_count", "preemptions")
    rows = ((9, 100, 50, 1.0, 1, 2), (4, 150, 60, 2.0, 5, 2), (2, 200, 75, 3.0, 5, 3))
    found = join([Point(n, dict(zip(names, row, strict=True))) for n, row in enumerate(rows)])
    assert found is not None
    assert (found.running_mean, found.running_most) == (3, 4)
    assert found.prefix_hit_rate == 0.25
    assert found.queue == 0.5
    assert found.preemptions == 1
    assert found.kv_usage_mean is None
    assert found.ttft is None


def test_what_is_known_is_shown_with_its_unit():
    points = [
        Point(1.0, {"running": 0, "queue_sum": 1.0, "queue_count": 2}),
        Point(2.0, {"running": 2, "queue_sum": 1.5, "queue_count": 4}),
        Point(3.0, {"running": 4, "queue_sum": 2.0, "queue_count": 6}),
    ]
    found = join(points)
    assert found is not None
    assert shown(found) == [("running", "3.0, at most 4.0"), ("queue, mean", "250.0 ms")]


@pytest.mark.parametrize("points", [[], [Point(1.0, {"running": 1})]])
def test_without_two_moments_there_is_nothing_to_say(points: list[Point]):
    assert join(points) is None


def test_a_scraper_asks_from_start_to_stop():
    with stub() as url:
        scraper = Scraper(Target.of(url, {}), every=0.02)
        scraper.start()
        wait_for(lambda: len(scraper.points) >= 3)
        points = scraper.stop()
    assert points[0].values["kv_usage"] == 0.5


def test_a_server_without_metrics_is_left_alone():
    scraper = Scraper(Target.of("http://127.0.0.1:9", {}))
    scraper.start()
    assert scraper.stop() == []
