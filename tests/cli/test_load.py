"""How loading shows itself: a bar in a terminal, lines elsewhere."""

from io import StringIO

import pytest
from rich.console import Console

from headrace.cli._load import Meter

TOLD = [("loading weights", part / 40) for part in range(1, 40)] + [("warming up", 1.0)]


def shown(terminal: bool, lines: int) -> tuple[str, str]:
    """What was written until the meter was stopped, and what a second load after that added."""
    out = StringIO()
    meter = Meter(Console(file=out, force_terminal=terminal, width=80), lines)
    for stage, part in TOLD:
        meter.tell(stage, part)
    meter.stop()
    first = out.getvalue()
    for stage, part in TOLD:
        meter.tell(stage, part)
    meter.stop()
    return first, out.getvalue()[len(first) :]


def test_a_log_gets_a_line_for_each_tenth_whenever_something_is_loaded():
    first, second = shown(terminal=False, lines=10)
    expected = ["loading weights: 2%", *(f"loading weights: {n}0%" for n in range(1, 10)), "warming up"]
    assert first.splitlines() == second.splitlines() == expected


def test_a_terminal_gets_a_bar_that_is_not_seen_again():
    first, second = shown(terminal=True, lines=10)
    assert "loading weights" in first
    assert "\x1b[2K" in first, "it was removed"
    assert second == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_who_writes_an_answer_to_a_file_gets_nothing_else(terminal: bool):
    first, _ = shown(terminal, lines=0)
    assert bool(first) == terminal


def test_a_long_job_says_each_stage_once():
    out = StringIO()
    with Meter(Console(file=out), lines=1, clock=True) as meter:
        for what, done in (
            ("looking", 0),
            ("block 1 of 2: a", 1),
            ("block 1 of 2: b", 2),
            ("block 2 of 2: a", 3),
        ):
            meter.report(what, done, 3 if done else 0)
    assert out.getvalue().splitlines() == ["looking", "block 1 of 2", "block 2 of 2"]
