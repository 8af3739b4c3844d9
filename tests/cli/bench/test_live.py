"""What is seen while a load test runs."""

from io import StringIO

from rich.console import Console

from headrace.bench.serve.arrivals import Load
from headrace.bench.serve.crew import Progress
from headrace.bench.serve.sample import Sample
from headrace.bench.serve.scrape import Point
from headrace.cli.bench._live import Watch

OK = Sample(0.0, 0.0, ended=0.5, first=0.1, last=0.3, chunks=[0.2], output_tokens=2, outcome="ok")
BAD = Sample(0.0, 0.0, ended=0.5, outcome="error")


def progress(elapsed: float, streamed: int, new: list[Sample]) -> Progress:
    return Progress(elapsed, 7, streamed, len(new), new, [0.1])


def rows(watch: Watch, load: Load, now: Progress, points: list[Point]) -> dict[str, str]:
    watch.told(load, now, points)
    table = watch._table(load, now, points)
    names, values = (list(column.cells) for column in table.columns)
    return dict(zip(map(str, names), map(str, values), strict=True))


def test_the_numbers_are_those_of_the_last_moments():
    watch, load = Watch(Console(file=StringIO())), Load(rate=5.0)
    rows(watch, load, progress(1.0, 100, [OK]), [])
    found = rows(watch, load, progress(2.0, 300, [OK, BAD]), [Point(1.0, {"running": 3.0, "kv_usage": 0.5})])
    assert found == {
        "on their way": "7",
        "done": "2",
        "failed or refused": "[red]1[/]",
        "output tokens/s": "200",
        "TTFT p50 / p99": "100.0 / 100.0 ms",
        "ITL p50 / p99": "200.0 / 200.0 ms",
        "server: running": "3",
        "server: KV in use": "50%",
    }


def test_a_new_level_begins_anew():
    watch = Watch(Console(file=StringIO()))
    rows(watch, Load(rate=5.0), progress(1.0, 100, [BAD]), [])
    found = rows(watch, Load(rate=6.0), progress(0.1, 0, []), [])
    assert (found["failed or refused"], found["TTFT p50 / p99"], found["output tokens/s"]) == ("0", "", "0")


def test_it_is_drawn_on_a_terminal_only():
    shown = {}
    for terminal in (True, False):
        console = Console(file=StringIO(), force_terminal=terminal, width=80)
        with Watch(console) as watch:
            watch.told(Load(streams=4), progress(1.0, 10, [OK]), [])
            if watch.live is not None:
                watch.live.refresh()
        shown[terminal] = console.file.getvalue()  # type: ignore[attr-defined]
    assert "4 streams" in shown[True]
    assert shown[False] == ""
