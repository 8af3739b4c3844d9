"""A tiny random model on disk, and commands run in this process."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from headrace.cli import main
from tests.tiny import folder

SMALL = [
    "--dummy-weights",
    "--memory.share=0.02",
    "--memory.kv-blocks=80",
    "--schedule.rows=4",
    "--schedule.tokens=64",
    "--threads=1",
]
"""Flags that make the tiny model start at once and want little memory."""


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


class Closed(io.StringIO):
    """A standard input that is a terminal nobody types at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def bare(tiny: Path, tmp_path: Path) -> Path:
    """The same model without a chat template."""
    at = tmp_path / "bare"
    at.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (at / name).write_text((tiny / name).read_text())
    return at


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Command:
    """Runs `headrace WORDS`; `stdin` is what is piped in (None: a terminal), `small` adds SMALL and the tiny model."""

    def run(*words: str, stdin: str | None = None, small: bool = False) -> Done:
        monkeypatch.setattr(sys, "stdin", Closed() if stdin is None else io.StringIO(stdin))
        more = SMALL if small else []
        if small and "--model" not in words:
            more = [*more, "--model", str(tiny)]
        at = words.index("--") if "--" in words else len(words)
        code = main.run([*words[:at], *more, *words[at:]])
        return Done(code, *capsys.readouterr())

    return run
