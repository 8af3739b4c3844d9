"""`headrace pull`."""

from pathlib import Path

import pytest

from tests.cli.conftest import Command


def test_it_prints_where_the_model_lies(command: Command, tiny: Path):
    assert command("pull", str(tiny)) == (0, f"{tiny}\n", "")


def test_the_default_is_the_default_model(command: Command, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr("headrace.checkpoint.hub.pull", lambda model: asked.append(model) or Path("there"))
    assert command("pull")[1] == "there\n"
    assert asked == ["smollm2-135m"]


def test_an_unknown_model(command: Command):
    code, _, err = command("pull", "smollm3-135m")
    assert code == 2
    assert "smollm2-135m" in err
