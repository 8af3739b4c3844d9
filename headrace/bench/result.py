"""The one format of every benchmark's result: what ran where, and the numbers; compared row by row."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from headrace.base.errors import Refused
from headrace.base.hardware import probe
from headrace.base.text_file import read_bytes
from headrace.bench.files import write

NOISE = 0.03
"""Differences below this part are called equal."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One number. `better` says which way is good: "lower" or "higher"."""

    name: str
    value: float
    unit: str
    better: str
    spread: float = 0.0
    """See `spread`."""


def spread(values: Sequence[float]) -> float:
    """Half the distance between the best and the worst repeat, as a part of their median."""
    return (max(values) - min(values)) / 2 / median(values)


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark command writes and `--compare` reads."""

    benchmark: str
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    settings: dict[str, Any]
    measures: list[Measure] = field(default_factory=list)

    @classmethod
    def here(
        cls, benchmark: str, settings: dict[str, Any], measures: list[Measure], gpu: str | None = None
    ) -> "Result":
        """Of this machine and this code; `gpu` by name."""
        hardware = probe()
        machine = {"cpu": hardware.cpu_name, "cores": hardware.cores} | ({"gpu": gpu} if gpu else {})
        return cls(benchmark, machine, versions("headrace", "torch", "triton"), commit(), settings, measures)

    def write(self, path: Path) -> None:
        """Raises Refused."""
        write(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path, benchmark: str, param: str = "compare") -> "Result":
        """Raises Refused for a file that is not a result of that benchmark."""
        raw = read_bytes(path, param)
        try:
            found = msgspec.json.decode(raw, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            raise Refused(f"{path} is not a result of a benchmark: {fault}", param=param) from fault
        if found.benchmark != benchmark:
            raise Refused(
                f"{path} is a result of `bench {found.benchmark}`; one of `bench {benchmark}` is expected",
                param=param,
            )
        return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of a comparison. `gain` 0.1 means ten percent better; None where a side is missing or nothing."""

    name: str
    unit: str
    before: float | None
    after: float | None
    gain: float | None
    word: str


def compare(before: Result, after: Result) -> list[Verdict]:
    """Every measure that either has, with a verdict: better, worse, equal, new or gone."""
    old, new = ({m.name: m for m in result.measures} for result in (before, after))
    return [_verdict(name, old.get(name), new.get(name)) for name in dict.fromkeys([*old, *new])]


def _verdict(name: str, old: Measure | None, new: Measure | None) -> Verdict:
    if old is None or new is None:
        known = new or old
        assert known is not None
        word = "new" if old is None else "gone"
        return Verdict(name, known.unit, old and old.value, new and new.value, None, word)
    more, less = (new.value, old.value) if new.better == "higher" else (old.value, new.value)
    if not less:
        return Verdict(name, new.unit, old.value, new.value, None, "better" if more else "equal")
    gain = more / less - 1
    noise = max(NOISE, old.spread, new.spread)
    word = "equal" if abs(gain) <= noise else "better" if gain > 0 else "worse"
    return Verdict(name, new.unit, old.value, new.value, gain, word)


def as_json(found: Any) -> Any:
    """What json can write: named tuples and dataclasses as objects with their names, nan and infinity as null."""
    if is_dataclass(found) and not isinstance(found, type):
        return {each.name: as_json(getattr(found, each.name)) for each in fields(found)}
    if isinstance(found, tuple) and hasattr(found, "_asdict"):
        return as_json(found._asdict())  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(found, Mapping):
        return {str(name): as_json(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [as_json(value) for value in found]
    return None if isinstance(found, float) and not isfinite(found) else found


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of packages; those that are missing are left out."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit this package runs from, if it runs from a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() or None if said.returncode == 0 else None
