"""What a run says it did."""

import json
from pathlib import Path

import pytest

from headrace.optimize.outcome import REPORT, Layer, Outcome, read_report
from headrace.optimize.recipe import Recipe


def layer(name: str, scheme: str, bits: float, weights: int) -> Layer:
    return Layer(name, scheme, "rtn", bits, weights * 2, round(weights * bits / 8), 0.0, 0.0)


def outcome(*layers: Layer) -> Outcome:
    return Outcome(
        "m", Path("m"), Path("out"), Recipe.parse({"scheme": "w8a16"}), layers, 9, 5, 0, 1.5, False
    )


def test_bits_count_what_stayed_as_it_was_and_no_head():
    made = outcome(
        layer("a", "w4a16", 4.0, 3000), layer("b", "none", 16.0, 1000), layer("lm_head", "none", 16.0, 9000)
    )
    assert made.bits == 7.0
    assert outcome().bits == 0.0


@pytest.mark.parametrize(
    "damage", ["{", "[]", "{}", '{"format": 2, "outcome": {}}', '{"format": 1, "outcome": {}}']
)
def test_a_folder_without_a_report_of_ours(tmp_path: Path, damage: str):
    made = outcome(layer("a", "w4a16", 4.0, 3000))
    assert read_report(tmp_path) is None
    said = {"format": 1, "outcome": made.as_object()}
    (tmp_path / REPORT).write_text(json.dumps(said))
    found = read_report(tmp_path)
    assert found is not None
    assert found[0].layers == made.layers
    assert found[0].out == tmp_path
    (tmp_path / REPORT).write_text(damage)
    assert read_report(tmp_path) is None
