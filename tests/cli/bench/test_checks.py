"""Flags of benchmarks, alone and together."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from headrace.base.errors import Refused
from headrace.cli.bench._checks import FILES, IGNORES, LEAST, PATTERNED, at_least, check
from headrace.cli.bench.serve import Judgement, Prompts, Traffic

USUAL: dict[str, Any] = {**asdict(Traffic()), **asdict(Prompts()), **asdict(Judgement())}


def test_every_name_is_a_flag():
    others = {name for pair in IGNORES.values() for name in pair}
    assert {*LEAST, *IGNORES, *others, *PATTERNED, *FILES} <= USUAL.keys()


def test_nothing_said_and_what_goes_together_pass(tmp_path: Path):
    check(USUAL, USUAL)
    together = {
        "rate": "5",
        "find_slo": "ttft_p99<1",
        "pattern": "burst",
        "burst": 4,
        "output": tmp_path / "a",
    }
    check(USUAL | together, USUAL)
    check(USUAL | {"replay": Path("t"), "rate": "2", "tokens_out": "5"}, USUAL)


@pytest.mark.parametrize(
    "given",
    [
        {flag: 7 if flag in LEAST else "other" for flag in (name, other)}
        for name, others in IGNORES.items()
        for other in others
    ]
    + [{"burst": 9}, {"ramp_from": 1.0, "pattern": "burst"}, {"cancel": 1.0}],
)
def test_what_would_be_ignored_or_is_no_part_is_refused(given: dict[str, Any]):
    with pytest.raises(Refused, match=r"given|expected a part"):
        check(USUAL | given, USUAL)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 0.5])
def test_numbers_have_a_least(value: float):
    with pytest.raises(Refused, match=f"--tokens-in is {value}; expected at least 1"):
        at_least(1, repeats=2, shape=None, tokens_in=value)
