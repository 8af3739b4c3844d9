"""Passes are found by their files' names, and say what is wrong with their options."""

from dataclasses import fields

import pytest

from headrace.base.errors import Refused, UnknownName
from headrace.optimize import passes
from headrace.optimize.passes import Change, Rounding, Turn

NAMES = passes.known()


def test_they_are_all_there():
    assert {"awq", "gptq", "rotation", "rtn", "smoothquant", "sparsegpt", "wanda"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_of_one_kind_and_says_what_it_does(name: str):
    made = passes.make(name, {})
    assert made.name == name
    assert sum(isinstance(made, kind) for kind in (Turn, Change, Rounding)) == 1
    assert 0 <= passes.rank(made) <= 2
    options = {each.name for each in fields(type(made)) if each.init}  # type: ignore[arg-type]
    assert set(passes.explained(name)) == options, "each option has a line in the docstring"
    assert passes.make(name, passes.options_of(made)) == made


def test_an_unknown_pass_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown pass 'gptk'") as caught:
        passes.make("gptk", {})
    assert "did you mean 'gptq'" in caught.value.hint


def test_an_unknown_option_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown option of gptq 'dmp'") as caught:
        passes.make("gptq", {"dmp": 0.1})
    assert "did you mean 'damp'" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gptq", {"damp": "much"}), ("gptq", {"damp": 0}), ("gptq", {"damp": True}), ("gptq", {"order": 1}),
        ("gptq", {"steps": 1.5}), ("gptq", {"steps": 0}), ("rtn", {"least": 2.0}), ("rtn", {"steps": None}),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_refused(name: str, options: dict[str, object]):
    with pytest.raises(Refused, match=next(iter(options))):
        passes.make(name, options)


def test_a_whole_number_is_a_number():
    assert passes.make("gptq", {"damp": 1}) == passes.make("gptq", {"damp": 1.0})
