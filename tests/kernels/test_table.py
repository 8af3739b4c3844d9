"""Tables of kernel configurations on disk."""

import json
from pathlib import Path

import pytest

from headrace.base.errors import Refused
from headrace.kernels import table

ROW = {"n": 8, "k": 16, "gated": False, "use": {"rows": 1, "chunk": 16, "warps": 2}}


def test_what_is_written_is_read_again_one_row_a_line(tmp_path):
    path = tmp_path / "deep" / "sm_90.json"
    table.write(path, {"gemv": [ROW, {**ROW, "n": 9}]}, {"gpu": "some"})
    rows = table.read(path)
    assert rows["gemv"] == [ROW, {**ROW, "n": 9}]
    assert [kind for kind in table.KINDS if rows[kind]] == ["gemv"]
    assert json.loads(path.read_text())["about"] == {"gpu": "some"}
    assert sum('"rows"' in line for line in path.read_text().splitlines()) == 2


def test_a_file_that_is_not_there_has_no_rows(tmp_path):
    assert not any(table.read(tmp_path / "none.json").values())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"gemv": [{"n": 1}]}', '{"gemv": 3}', '{"gemw": []}', '{"gemv": [3]}'],
)
def test_what_is_no_table_is_refused_with_a_way_out(tmp_path, text):
    path = tmp_path / "sm_90.json"
    path.write_text(text)
    with pytest.raises(Refused, match="is not a table") as refused:
        table.read(path)
    assert "--tune" in refused.value.hint


def test_what_may_have_no_end_is_no_table():
    with pytest.raises(Refused, match="it is a pipe or a device"):
        table.read(Path("/dev/zero"))


def test_rows_above_replace_those_for_the_same_case():
    below = {"gemv": [ROW, {**ROW, "n": 9}], "skinny": [{"tokens": 16, "use": None}]}
    above = {"gemv": [{**ROW, "use": None}, {**ROW, "n": 10}]}
    rows = table.merged(below, above)
    assert [(row["n"], row["use"] is None) for row in rows["gemv"]] == [(8, True), (9, False), (10, False)]
    assert rows["skinny"] == below["skinny"]


def test_names_say_the_generation(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    assert table.own((9, 0)) == tmp_path / "kernels" / "sm_90.json"
    assert table.packaged((10, 0)).name == "sm_100.json"
    assert table.packaged((0, 0)).name == "any.json"


@pytest.mark.parametrize("path", sorted(table.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_the_packages_own_are_sound(path):
    rows = table.read(path)
    assert any(rows.values())
    assert table.merged(rows, {}) == rows, "a case is there twice"
