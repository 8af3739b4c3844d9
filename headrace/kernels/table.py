"""Files of measured kernel configurations: one per GPU generation in the package, and one of the user's own above it.

A file is JSON. `headrace bench kernels --tune` writes it; people may too. Each kind of kernel has a list of rows;
a row names what it is for and what to use there, null where the library's kernel was faster:

    {"about": {...}, "gemv": [{"n": 4096, "k": 1024, "gated": false, "use": {"rows": 8, "chunk": 1024, "warps": 8}}]}
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from headrace.base.errors import Refused
from headrace.base.home import home
from headrace.base.text_file import check

Row = dict[str, Any]
Rows = dict[str, list[Row]]

KINDS = ("gemv", "skinny", "middle", "gemv8", "skinny8", "wide8", "int4", "decode", "prefill", "few")
FOLDER = Path(__file__).parent / "tables"


def file_name(capability: tuple[int, int]) -> str:
    """sm_90.json for (9, 0); any.json for (0, 0), which stands for every generation without a file."""
    return f"sm_{capability[0]}{capability[1]}.json" if any(capability) else "any.json"


def packaged(capability: tuple[int, int]) -> Path:
    """The file that comes with the package; it need not exist."""
    return FOLDER / file_name(capability)


def own(capability: tuple[int, int]) -> Path:
    """The user's own file; it need not exist."""
    return home() / "kernels" / file_name(capability)


def read(path: Path) -> Rows:
    """Rows by kind; none of a file that is not there. Raises Refused for a file that is no such table."""
    check(path, "table")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        rows = {kind: said.get(kind, []) for kind in KINDS}
        unknown = [name for name in said if name not in (*KINDS, "about")]
        sound = all(isinstance(row, dict) and "use" in row for kind in rows.values() for row in kind)
    except FileNotFoundError:
        return {kind: [] for kind in KINDS}
    except (OSError, ValueError, AttributeError, TypeError) as fault:
        raise _no_table(path, str(fault)) from fault
    if unknown or not sound:
        raise _no_table(path, f"unknown kinds {unknown}" if unknown else "a row without `use`")
    return rows


def _no_table(path: Path, reason: str) -> Refused:
    return Refused(
        f"{path} is not a table of kernel configurations: {reason}",
        hint="delete it, or write it anew with `headrace bench kernels --tune`",
    )


def merged(below: Rows, above: Rows) -> Rows:
    """All rows; those of `above` stand in the place of rows of `below` for the same case."""
    return {
        kind: list({_case(row): row for row in (*below.get(kind, []), *above.get(kind, []))}.values())
        for kind in KINDS
    }


def _case(row: Row) -> str:
    return json.dumps({name: value for name, value in row.items() if name != "use"}, sort_keys=True)


def write(path: Path, rows: Mapping[str, Iterable[Row]], about: Mapping[str, Any]) -> None:
    """One row a line, so that a change of one shows as one. `about`: machine and versions, for people."""
    parts = [f' "about": {json.dumps(about)}']
    for kind in KINDS:
        if lines := [f"  {json.dumps(row)}" for row in rows.get(kind, [])]:
            parts.append(f' "{kind}": [\n' + ",\n".join(lines) + "\n ]")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
