"""Every knob explains itself, in the code and in the docs, and there are not too many."""

import runpy
from pathlib import Path

import pytest

from headrace.base.config import flat
from headrace.serve.settings import ServeConfig

ROOT = Path(__file__).parents[2]
KNOBS = flat(ServeConfig)


@pytest.mark.parametrize("name", KNOBS)
def test_help_says_something(name: str):
    words = KNOBS[name].help.split()
    assert len(words) >= 3
    assert not KNOBS[name].help.endswith(".")


@pytest.mark.parametrize("name", [name for name, knob in KNOBS.items() if knob.default is None])
def test_an_open_knob_says_what_it_will_be(name: str):
    assert "default:" in KNOBS[name].help


@pytest.mark.parametrize("name", [name for name, knob in KNOBS.items() if knob.default == "auto"])
def test_an_auto_says_what_it_picks(name: str):
    assert "auto" in KNOBS[name].help


@pytest.mark.parametrize("name", KNOBS)
def test_no_knob_without_an_owner(name: str):
    """Some file of the package reads it: an option that would be ignored is an error."""
    leaf = f".{name.split('.')[-1]}"
    readers = [
        p for p in (ROOT / "headrace").rglob("*.py") if p.name != "config.py" and leaf in p.read_text()
    ]
    assert readers


def test_the_ceiling():
    assert len(KNOBS) <= 60


def test_the_page_is_up_to_date():
    made = runpy.run_path(str(ROOT / "docs/generate.py"))["knobs"]()
    assert (ROOT / "docs/knobs.md").read_text() == made, "docs/knobs.md is old: run `make docs`"
