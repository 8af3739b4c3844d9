"""The bar draws in a terminal and prints a line per stage elsewhere."""

import io

from rich.console import Console

from headrace.checkpoint.bar import Bar


def shown(terminal: bool) -> str:
    out = io.StringIO()
    with Bar(Console(file=out, force_terminal=terminal, width=120)) as bar:
        bar("downloading x", 0, 4_000_000)
        bar("downloading x", 2_000_000, 4_000_000)
        bar("downloading x", 9_000_000, 4_000_000)
        bar("unpacking x", 1, 2_000_000)
    return out.getvalue()


def test_elsewhere_a_line_per_stage():
    assert shown(False) == "downloading x (4 MB)\nunpacking x (2 MB)\n"


def test_in_a_terminal_a_bar():
    assert "unpacking x" in shown(True)
    assert "MB" in shown(True)
