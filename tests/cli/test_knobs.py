"""The tree of knobs as flags."""

from typing import get_args

import pytest

from headrace.base.config import Config, flat, values
from headrace.cli._knobs import Engine, flag
from headrace.cli.main import app

KNOBS = flat(Config)


def given(*words: str) -> Config:
    """What the engine flags of a command line make of the tree."""
    _, bound, _ = app.parse_args(["chat", *words], exit_on_error=False, print_error=False)
    engine = bound.arguments.get("engine", Engine())
    assert isinstance(engine, Engine)
    return engine.config


@pytest.mark.parametrize("name", KNOBS)
def test_each_knob_has_its_flag(name: str):
    knob = KNOBS[name]
    sample = {"model.device": "cpu"}.get(name) or (
        knob.choices[-1] if knob.choices else knob.low if knob.low is not None else "x"
    )
    if bool in (knob.type, *get_args(knob.type)):
        head, dot, leaf = flag(name).removeprefix("--").rpartition(".")
        words = [f"--{head}{dot}no-{leaf}" if knob.default else flag(name)]
        sample = not knob.default
    else:
        words = [flag(name), str(sample)]
    changed = values(given(*words))
    assert str(changed[name]).removesuffix(".0") == str(sample)
    assert [other for other in KNOBS if changed[other] != values(Config())[other]] in ([name], [])
    assert changed[name] == values(Config())[name] or changed != values(Config())


@pytest.mark.parametrize(
    ("knob", "name"),
    [
        ("model.path", "--model"),
        ("model.max_len", "--max-len"),
        ("memory.share", "--memory.share"),
        ("schedule.prefix_cache", "--schedule.prefix-cache"),
    ],
)
def test_names_of_flags(knob: str, name: str):
    assert flag(knob) == name


def test_the_model_has_a_short_flag():
    assert given("-m", "there").model.path == "there"


def test_nothing_given_is_the_default():
    assert given() == Config()
