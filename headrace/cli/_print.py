"""What commands print: tables and JSON as their answer, lines on standard error beside it."""

import json
import sys
from collections.abc import Container, Iterable, Sequence
from typing import Any

from rich.table import Table


def table(
    heads: Sequence[str], rows: Iterable[Iterable[str]], *, words: Container[int] = (0,), **style: Any
) -> Table:
    """A table in which columns number `words` are words and the others numbers; `style` is rich's.

    Where a terminal is too narrow, cells go on in the next line: no digit is left out.
    """
    made = Table(**style)
    for n, head in enumerate(heads):
        made.add_column(head, justify="left" if n in words else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def sheet(title: str, rows: Iterable[Iterable[str]], **style: Any) -> Table:
    """Names and what is said of each, in lines as long as they must be."""
    return table(("", ""), rows, words=(0, 1), title=title, show_header=False, **style)


def write_json(value: Any) -> None:
    """Plain values as the whole of standard output."""
    json.dump(value, sys.stdout, indent=1)
    sys.stdout.write("\n")


def tell(said: str) -> None:
    """How far it is, on standard error."""
    print(said, file=sys.stderr, flush=True)  # noqa: T201
