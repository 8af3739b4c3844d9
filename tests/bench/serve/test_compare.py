"""A run against an earlier one."""

import json
from pathlib import Path

import pytest

from headrace.base.errors import Refused
from headrace.bench.serve.compare import Gate, compare, read, read_gates
from headrace.bench.serve.export import document, write_json
from tests.bench.serve.made import campaign, level, samples


def result(tpot: float = 0.01, count: int = 200) -> dict[str, object]:
    return document(campaign(), [level(found=samples(count, tpot=tpot))], {})


def test_gates_are_read():
    assert read_gates(["tpot_p99 +5%, output_per_second -3%", "error_rate +0.01"]) == [
        Gate("tpot_p99", True, 0.05, True),
        Gate("output_per_second", False, 0.03, True),
        Gate("error_rate", True, 0.01, False),
    ]
    assert [gate.text for gate in read_gates(["tpot_p99+5%"])] == ["tpot_p99 +5%"]


@pytest.mark.parametrize("text", ["", "tpot_p99", "tpot_p99 5%", "nothing +5%", "tpot_p99 +x%"])
def test_what_is_no_gate_is_refused(text: str):
    with pytest.raises(Refused, match="no limit of change"):
        read_gates([text])


def test_a_change_past_its_gate_is_broken():
    rows = compare(
        result(), result(tpot=0.011), read_gates(["tpot_p99 +5%", "tpot_p50 +20%", "ttft_p99 +5%"])
    )
    broken = {row.name: row.broken for row in rows if row.broken}
    assert broken == {"tpot_p99": ["tpot_p99 +5%"]}
    changed = {row.name: row for row in rows}["tpot_p50"]
    assert changed.change == pytest.approx(0.1, abs=0.01)
    assert changed.better is False


def test_better_is_up_for_rates_and_down_for_times():
    rows = {row.name: row for row in compare(result(), result(tpot=0.005))}
    assert rows["tpot_p50"].better is True
    assert rows["e2e_p99"].better is True
    assert rows["output_per_second"].better is True
    assert (rows["output_per_second"].change or 0) > 0
    assert rows["ttft_p50"].better is None, "the same"


def test_a_run_that_measured_nothing_does_not_pass():
    rows = compare(result(), result(count=0), read_gates(["tpot_p99 +5%"]))
    assert [row.broken for row in rows if row.name == "tpot_p99"] == [["tpot_p99 +5%"]]


def test_runs_without_a_level_in_common_are_refused():
    other = result()
    other["levels"][0]["name"] = "8 streams"  # type: ignore[index]
    with pytest.raises(Refused, match="no level of load is in both"):
        compare(result(), other)


def test_a_file_survives_its_writing(tmp_path: Path):
    said = result()
    write_json(tmp_path / "r.json", said)
    assert read(tmp_path / "r.json") == json.loads(json.dumps(said))


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"benchmark": "throughput"}', '{"benchmark": "serve"}', "null"]
    + [
        f'{{"benchmark": "serve", "schema": {schema}, "levels": [{{"name": {name}, "whole": {whole}}}]}}'
        for schema, name, whole in (
            (1, '"a"', "null"),
            (1, '"a"', '{"ttft": 3}'),
            (1, '"a"', '{"goodput": "3"}'),
            (1, '["a"]', "{}"),
            (2, '"a"', "{}"),
        )
    ]
    + ["[" * 200_000],
    ids=lambda content: content[-20:],
)
def test_another_file_is_refused(tmp_path: Path, content: str):
    (tmp_path / "x").write_text(content)
    with pytest.raises(Refused, match="not a result"):
        read(tmp_path / "x")
