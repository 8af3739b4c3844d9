"""A run against an earlier one: what changed by how much, and what must not have."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headrace.base.errors import Refused
from headrace.base.text_file import read_bytes
from headrace.bench.serve.export import SCHEMA
from headrace.bench.serve.measures import FLOORS, KNOWN, Json, read_terms, value

GATE = re.compile(r"\s*([a-z0-9_]+)\s*([+-])\s*([0-9.]+)\s*(%|)\s*")
TIMES = ("ttft_", "tpot_", "itl_", "e2e_")
SHOWN = ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99", "itl_p99", "e2e_p99", "output_per_second", "goodput")


class Gate(NamedTuple):
    """A number must not have changed in a direction by more than so much: of itself (`part`), or as it is."""

    name: str
    up: bool
    most: float
    part: bool

    @property
    def text(self) -> str:
        size = f"{self.most * 100:g}%" if self.part else f"{self.most:g}"
        return f"{self.name} {'+' if self.up else '-'}{size}"


class Row(NamedTuple):
    """One number of one level, before and after. `change` 0.1 is ten percent more; `broken`: the gates it is past."""

    level: str
    name: str
    before: float | None
    after: float | None
    change: float | None
    better: bool | None
    broken: list[str]


def read_gates(texts: Sequence[str]) -> list[Gate]:
    """`tpot_p99 +5%` as gates; several may be in one text, with commas. Raises Refused."""
    what = "limit of change; expected such as 'tpot_p99 +5%' or 'output_per_second -3%'"
    matches = [match for text in texts for match in read_terms(text, GATE, what, "fail-if")]
    return [Gate(m[1], m[2] == "+", float(m[3]) / (100 if m[4] else 1), bool(m[4])) for m in matches]


def read(path: Path) -> Json:
    """An earlier result. Raises Refused for a file that is not one."""
    raw = read_bytes(path, "compare")
    try:
        found: Any = json.loads(raw)
        if found["benchmark"] != "serve":
            raise ValueError(f"it is one of `bench {found['benchmark']}`")
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is {found['schema']}; this version reads {SCHEMA}")
        for level in found["levels"]:
            numbers = [value(level["whole"], name) for name in KNOWN]
            if not isinstance(level["name"], str) or not all(
                isinstance(n, float | int | None) for n in numbers
            ):
                raise TypeError("a level has a name or a number that is none")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as fault:
        raise Refused(
            f"{path} is not a result of `headrace bench serve`: {fault}", param="compare"
        ) from fault
    return found


def said(name: str, number: float | None) -> str:
    """A number for people; times in milliseconds."""
    if number is None:
        return ""
    return f"{number * 1000:.5g} ms" if name.startswith(TIMES) else f"{number:.5g}"


def compare(before: Json, after: Json, gates: Sequence[Gate] = ()) -> list[Row]:
    """Rows for all levels that both have, by name. Raises Refused where they have none in common.

    A gate whose number is there before and missing after is broken: a run that measured nothing must not pass.
    """
    old = {level["name"]: level for level in before["levels"]}
    common = [level for level in after["levels"] if level["name"] in old]
    if not common:
        raise Refused(
            f"no level of load is in both: {', '.join(old)} before,"
            f" {', '.join(level['name'] for level in after['levels'])} now",
            param="compare",
            hint="repeat the run with the flags of the earlier one",
        )
    names = [*SHOWN, *(gate.name for gate in gates if gate.name not in SHOWN)]
    rows = [_row(old[level["name"]], level, name, gates) for level in common for name in dict.fromkeys(names)]
    return [row for row in rows if row.before is not None or row.after is not None]


def _row(old: Json, new: Json, name: str, gates: Sequence[Gate]) -> Row:
    before, after = value(old["whole"], name), value(new["whole"], name)
    mine = [gate for gate in gates if gate.name == name]
    if before is None or after is None:
        lost = [gate.text for gate in mine if before is not None]
        return Row(new["name"], name, before, after, None, None, lost)
    change = after / before - 1 if before else None
    grown = after - before
    better = None if not grown else (grown > 0) == (name in FLOORS)
    broken = [
        gate.text
        for gate in mine
        if (grown if gate.up else -grown) > (gate.most * abs(before) if gate.part else gate.most)
    ]
    return Row(new["name"], name, before, after, change, better, broken)
