"""The report: one file, whole, and without anything from elsewhere."""

from headrace.bench.serve.arrivals import Load
from headrace.bench.serve.compare import compare, read_gates
from headrace.bench.serve.export import document
from headrace.bench.serve.report import html
from headrace.bench.serve.sample import Sample
from tests.bench.pages import alone
from tests.bench.serve.made import campaign, level, samples


def page() -> str:
    bad = Sample(1.0, 1.0, ended=2.0, outcome="error", reason="HTTP 500: <b>oops</b>")
    levels = [
        level(found=[*samples(), bad], of=campaign(limits={"ttft": 0.1})),
        level(Load(streams=1, duration=20.0), samples(rate=2.0, ttft=0.05)),
        level(Load(streams=4, duration=20.0), samples(rate=15.0, ttft=0.3)),
        level(Load(rate=0.1, duration=5.0), []),
        level(Load(rate=20.0, duration=10.0), samples(rate=20.0, ttft=0.2)),
    ]
    said = document(
        campaign(), levels, {"url": "<script>"}, {"limits": "ttft_p99<0.5", "holds": 9.0, "fails": None}
    )
    before = document(campaign(), [level()], {})
    return html(said, levels, compare(before, said, read_gates(["ttft_p99 +0.01%"])))


def test_it_is_whole_and_loads_nothing():
    text = page()
    alone(text)
    assert "<b>oops" not in text
    assert "&lt;b&gt;oops" in text
    assert "&lt;script&gt;" in text


def test_it_has_what_was_measured():
    text = page()
    for word in ("10/s", "20/s", "TTFT p99, by rate", "TTFT p99, by streams", "By the server"):
        assert word in text, word
    for heading in ("Latency against load", "Against the baseline", "What the numbers mean"):
        assert f"<h2>{heading}</h2>" in text
    assert text.count("<svg") >= 10
    assert "holds at <b>9 requests per second</b>" in text


def test_a_level_of_a_late_client_is_listed_but_no_point_of_a_curve():
    levels = [level(), level(Load(rate=20.0, duration=10.0), samples(rate=20.0, lag=0.05))]
    text = html(document(campaign(), levels, {}), levels)
    assert "20/s (invalid)" in text
    assert "Latency against load" not in text


def test_a_page_says_when_its_numbers_are_not_as_it_explains_them():
    levels = [level(of=campaign(definitions="guidellm"))]
    text = html(document(campaign(definitions="guidellm"), levels, {}), levels)
    assert "as guidellm defines them" in text
    assert "defines them" not in page()


def test_a_run_of_nothing_has_a_report():
    empty = campaign()._judged(Load(requests=1), [], 0.0, [], [])
    text = html(document(campaign(), [empty], {}), [empty])
    assert "all at once" in text
    alone(text)
