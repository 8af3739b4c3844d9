"""What the flags of benchmarks must not be, alone or together."""

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from headrace.base.errors import Refused
from headrace.bench.files import check_writable
from headrace.bench.serve.lengths import MOST as LONGEST

LEAST = {
    **dict.fromkeys(("requests", "processes", "burst", "prefix_groups"), 1),
    **dict.fromkeys(("duration", "timeout", "burstiness"), 0.001),
    **dict.fromkeys(("ramp_from", "warmup", "drain", "prefix_tokens", "cancel", "seed"), 0),
}
"""What numbers must not be below."""
MOST = 2**62
"""What none may be above: it would not fit into 64 bits."""
IGNORES = {
    "concurrency": ("rate", "pattern", "burstiness"),
    "sweep": ("rate", "concurrency", "requests", "replay"),
    "find_slo": ("sweep", "concurrency", "requests", "replay"),
    "replay": ("concurrency", "pattern", "burstiness", "data", "tokens_in", "prefix_tokens", "turns"),
    "data": ("tokens_in", "prefix_tokens", "turns"),
}
"""Flags beside which others would be ignored."""
PATTERNED = {"burst": "burst", "ramp_from": "ramp"}
"""Flags that only one pattern of arrivals heeds."""
FILES = ("output", "csv", "samples", "html")


def check(given: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Raises Refused for what makes no sense, would be ignored, or could not be written when all is over.

    `given` and `usual`: the flags as they are, and as they are if nobody says anything.
    """
    for name, least in LEAST.items():
        at_least(least, **{name: given[name]})
    if given["cancel"] >= 1:
        raise Refused(f"--cancel is {given['cancel']}; expected a part from 0 to 1", param="cancel")
    at_least(0, LONGEST, prefix_tokens=given["prefix_tokens"])
    for said in _ignored(given, {name for name, value in given.items() if value != usual[name]}):
        raise Refused(said, hint="one of them would be ignored")
    files = {name: given[name] for name in FILES if given[name] is not None}
    for name, path in files.items():
        check_writable(path, name)
    if len({path.absolute() for path in files.values()}) < len(files):
        raise Refused(f"one file is given for two of {', '.join(files)}", param="output")


def at_least(least: float, most: int = MOST, /, **given: float | None) -> None:
    """Raises Refused for a flag with less, or more, or with no number at all; None is a flag that nobody gave."""
    for name, value in given.items():
        if value is not None and not least <= value <= most:
            wanted = f"at most {most}" if most < value < inf else f"at least {least:g}"
            raise Refused(f"--{_flag(name)} is {value}; expected {wanted}", param=name)


def _ignored(given: Mapping[str, Any], changed: set[str]) -> Iterator[str]:
    for name, others in IGNORES.items():
        for other in others:
            if {name, other} <= changed:
                yield f"--{_flag(other)} and --{_flag(name)} are both given"
    for name, pattern in PATTERNED.items():
        if name in changed and given["pattern"] != pattern:
            yield f"--{_flag(name)} is given, and --pattern {given['pattern']}, not {pattern}"


def _flag(name: str) -> str:
    return name.replace("_", "-")
