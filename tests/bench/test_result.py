"""A result survives its file, and comparing says better only beyond the noise."""

from pathlib import Path

import pytest

from headrace.base.errors import Refused
from headrace.bench.result import Measure, Result, compare, versions


def result(*measures: Measure) -> Result:
    return Result("test", {"cpu": "x"}, {"python": "3"}, "abc", {"a": 1}, list(measures))


def test_a_result_comes_back_from_its_file(tmp_path: Path):
    made = result(Measure("time", 1.5, "s", "lower", 0.1))
    made.write(tmp_path / "r.json")
    assert Result.read(tmp_path / "r.json", "test") == made
    with pytest.raises(Refused, match="of `bench test`; one of `bench other` is expected"):
        Result.read(tmp_path / "r.json", "other")


def measured(value: str, settings: str = "{}") -> str:
    measure = f'{{"name": "m", "value": {value}, "unit": "s", "better": "lower"}}'
    rest = '"benchmark": "test", "machine": {}, "versions": {}, "commit": null'
    return f'{{{rest}, "settings": {settings}, "measures": [{measure}]}}'


@pytest.mark.parametrize(
    "text",
    ["", "[]", measured("1")[:-2], measured('"x"'), measured("null"), measured("1", "[]"), "[" * 200_000],
    ids=lambda text: text[:9],
)
def test_another_file_is_refused(tmp_path: Path, text: str):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(Refused, match=r"r\.json is not a result"):
        Result.read(tmp_path / "r.json", "test")


@pytest.mark.parametrize(
    ("better", "before", "after", "spread", "word"),
    [
        ("lower", 1.0, 0.8, 0.0, "better"),
        ("lower", 1.0, 1.2, 0.0, "worse"),
        ("higher", 1.0, 1.2, 0.0, "better"),
        ("higher", 1.0, 0.8, 0.0, "worse"),
        ("lower", 1.0, 1.02, 0.0, "equal"),
        ("lower", 1.0, 1.2, 0.3, "equal"),
        ("lower", 1.0, 0.0, 0.0, "better"),
        ("lower", 0.0, 1.0, 0.0, "worse"),
        ("lower", 0.0, 0.0, 0.0, "equal"),
        ("higher", 0.0, 1.0, 0.0, "better"),
    ],
)
def test_verdicts(better: str, before: float, after: float, spread: float, word: str):
    old, new = (result(Measure("m", value, "s", better, spread)) for value in (before, after))
    (verdict,) = compare(old, new)
    assert verdict.word == word


def test_measures_that_only_one_side_has():
    verdicts = compare(result(Measure("a", 1, "s", "lower")), result(Measure("b", 2, "s", "lower")))
    said = [(v.name, v.word, v.before, v.after) for v in verdicts]
    assert said == [("a", "gone", 1, None), ("b", "new", None, 2)]


def test_versions_leave_out_what_is_missing():
    assert set(versions("pytest", "no-such-package")) == {"python", "pytest"}
