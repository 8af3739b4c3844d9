"""Sheets of numbers and their text for Prometheus."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from headrace.serve.series import LAZY, Family, Histogram, Layout, Page, Sheet, info, neighbours, totals

BY_COLOUR = tuple(((("colour", c),)) for c in ("red", 'a "b"\\\n'))
FAMILIES = (
    Family("seen_total", "counter", "100% of\nwhat \\ was seen.", BY_COLOUR, aliases=("also_seen_total",)),
    Family("level", "gauge", "How high.", bare=True),
    Family("wait_seconds", "histogram", "Waiting.", edges=(0.5, 1, 2)),
    Family("fine_seconds", "histogram", "Finely.", edges=(1, 2), fine=(0.5, 1, 1.5, 2)),
)


def values(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text.decode())
        for sample in family.samples
    }


@pytest.fixture
def layout() -> Layout:
    return Layout(FAMILIES)


@pytest.fixture
def page(layout: Layout) -> Page:
    return Page(layout, (("model_name", "m%s"),))


def test_what_is_written_is_what_prometheus_reads(layout: Layout, page: Page):
    sheet = Sheet(layout)
    sheet.add(layout.at("seen_total", "red"), 3)
    sheet.add(layout.at("seen_total", 'a "b"\\\n'))
    sheet.set(layout.at("level"), 0.25)
    found = values(page.render([sheet.values], 0.0))
    model = ("model_name", "m%s")
    assert found[("seen_total", (("colour", "red"), model))] == 3
    assert found[("also_seen_total", (("colour", 'a "b"\\\n'), model))] == 1
    assert found[("level", ())] == 0.25
    kinds = {family.name: family.type for family in parse(page.render([sheet.values], 0.0).decode())}
    assert kinds == {
        "seen": "counter",
        "also_seen": "counter",
        "level": "gauge",
        "wait_seconds": "histogram",
        "fine_seconds": "histogram",
    }


@pytest.mark.parametrize(
    ("name", "bounds"), [("wait_seconds", ("0.5", "1.0", "2.0")), ("fine_seconds", ("1.0", "2.0"))]
)
def test_buckets_hold_what_is_not_above_their_bound(
    layout: Layout, page: Page, name: str, bounds: tuple[str, ...]
):
    sheet, given = Sheet(layout), [0.1, 0.5, 0.6, 1.0, 1.2, 2.0, 2.1, 99.0]
    histogram = Histogram(sheet, name)
    for value in given:
        histogram.observe(value)
    found = values(page.render([sheet.values], 0.0))
    model = ("model_name", "m%s")
    for bound in bounds:
        expected = sum(value <= float(bound) for value in given)
        assert found[(f"{name}_bucket", (("le", bound), model))] == expected
    assert found[(f"{name}_bucket", (("le", "+Inf"), model))] == len(given)
    assert found[(f"{name}_count", (model,))] == len(given)
    assert found[(f"{name}_sum", (model,))] == pytest.approx(sum(given))


def test_series_of_the_http_server_are_there_from_their_first_use_on():
    names = Family("asked_total", "counter", "Asked.", BY_COLOUR, bare=True)
    waits = Family("took_seconds", "histogram", "Took.", BY_COLOUR, edges=(1,), bare=True)
    layout = Layout((names, waits))
    sheet, page = Sheet(layout), Page(layout, (("model_name", "m"),))
    assert values(page.render([sheet.values], 0.0)) == {}
    sheet.add(layout.at("asked_total", "red"), 2)
    Histogram(sheet, "took_seconds", "red").observe(0.0)
    found = values(page.render([sheet.values], 1.0))
    red = ("colour", "red")
    assert found.pop(("asked_total", (red,))) == 2
    assert found.pop(("took_seconds_bucket", (red, ("le", "1.0")))) == 1
    assert found.pop(("took_seconds_bucket", (red, ("le", "+Inf")))) == 1
    assert found == {("took_seconds_count", (red,)): 1, ("took_seconds_sum", (red,)): 0}
    sheet.add(layout.at("asked_total", 'a "b"\\\n'))
    assert len(values(page.render([sheet.values], 2.0))) == 6


def test_many_at_once_count_as_many(layout: Layout):
    given = [0.1, 0.5, 0.7, 0.7, 3.0]
    once, often = Sheet(layout), Sheet(layout)
    Histogram(once, "wait_seconds").observe_all(given)
    for value in given:
        Histogram(often, "wait_seconds").observe(value)
    assert once.values.tolist() == pytest.approx(often.values.tolist())


def test_a_change_is_seen_by_the_next_rendering(layout: Layout, page: Page):
    sheet = Sheet(layout)
    before = page.render([sheet.values], 0.0)
    assert page.render([sheet.values], 0.0) == before
    sheet.add(layout.at("seen_total", "red"))
    assert page.render([sheet.values], 0.0) != before


def test_histograms_are_redone_only_now_and_then(layout: Layout, page: Page):
    sheet = Sheet(layout)
    shown = [page.render([sheet.values], 10.0)]
    Histogram(sheet, "wait_seconds").observe(1)
    shown += [page.render([sheet.values], 10.0 + LAZY * part) for part in (0.5, 1.5)]
    assert shown[0] == shown[1] != shown[2]


def test_several_processes_show_their_sum(layout: Layout, page: Page, tmp_path: Path):
    first, second = (Sheet(layout, tmp_path / f"{n}.sheet") for n in "ab")
    first.add(layout.at("seen_total", "red"), 2)
    second.add(layout.at("seen_total", "red"), 5)
    both = neighbours(tmp_path, layout)
    assert len(both) == 2
    assert totals(both)[layout.at("seen_total", "red")] == 7
    assert values(page.render(both, 0.0))[("seen_total", (("colour", "red"), ("model_name", "m%s")))] == 7
    second.add(layout.at("seen_total", "red"))
    assert totals(both)[layout.at("seen_total", "red")] == 8, "what others write later is seen"


def test_a_process_goes_on_where_the_one_before_it_stopped(layout: Layout, tmp_path: Path):
    Sheet(layout, tmp_path / "a.sheet").add(0, 4)
    sheet = Sheet(layout, tmp_path / "a.sheet")
    sheet.add(0, 1)
    assert neighbours(tmp_path, layout)[0][0] == 5


def test_sheets_of_another_layout_or_gone_are_left_alone(layout: Layout, tmp_path: Path):
    (tmp_path / "other.sheet").write_bytes(b"\0" * 24)
    (tmp_path / "removed.sheet").symlink_to(tmp_path / "nothing")
    assert neighbours(tmp_path, layout) == []


def test_series_that_do_not_exist_are_not_found(layout: Layout):
    with pytest.raises(KeyError):
        layout.at("seen_total", "green")


def test_a_gauge_may_speak_by_its_labels():
    (((name, labels), value),) = values(info("about_info", "About.", {"size": '16"'}, 2.5)).items()
    assert (name, labels, value) == ("about_info", (("size", '16"'),), 2.5)
