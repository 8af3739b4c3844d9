"""`headrace run`."""

import re
import signal
from pathlib import Path

import pytest

from headrace.cli import run
from tests.cli.conftest import Command

STATS = re.compile(
    r"\[loaded in [\d.]+ s, prompt (\d+) tokens, first token after .* s in all, ended by (\w+)\]\n"
)


def test_an_answer_and_its_statistics(command: Command):
    code, out, err = command("run", "Hello", "--max-tokens", "8", small=True)
    assert code == 0
    assert out.endswith("\n")
    assert (found := STATS.fullmatch(err))
    assert int(found[1]) == len("user\nHello\nassistant\n") + 3  # a token per byte, and the template's own
    assert found[2] in ("length", "stop")


def test_the_same_again_and_greedy(command: Command):
    words = ("run", "Hello", "--max-tokens=8", "--temperature=0", "--quiet")
    first, again = command(*words, small=True), command(*words, small=True)
    assert first == again
    assert first[2] == ""


def test_standard_input_is_a_prompt(command: Command):
    words = ("--max-tokens=8", "--temperature=0")
    given = command("run", "Hello", *words, small=True)
    assert command("run", *words, stdin="Hello\n", small=True)[1] == given[1]


def test_raw_leaves_the_template_out(command: Command):
    _, _, err = command("run", "Hello", "--raw", "--max-tokens=2", small=True)
    assert "prompt 5 tokens" in err


def test_a_system_message_comes_first(command: Command):
    _, _, err = command("run", "Hello", "--system", "Be kind", "--max-tokens=2", small=True)
    assert f"prompt {len('system Be kind user Hello assistant ') + 5} tokens" in err


def test_a_model_without_a_template_continues(command: Command, bare: Path):
    _, _, err = command("run", "Hello", "--max-tokens=2", "--model", str(bare), small=True)
    assert "prompt 5 tokens" in err


def test_a_prompt_with_a_hyphen(command: Command):
    _, _, err = command("run", "--raw", "--max-tokens=2", "--", "--seven", small=True)
    assert "prompt 7 tokens" in err


@pytest.mark.parametrize(
    ("words", "stdin", "said"),
    [
        ([], None, "there is no prompt"),
        ([], "", "the prompt is empty"),
        ([" "], None, "the prompt is empty"),
        ([], "x" * (run.MOST + 1), "standard input has more than 16,777,216 characters"),
        (["x", "--raw", "--system", "y"], None, "--system needs the chat template"),
        (["x", "--max-tokens", "0"], None, "max_tokens is 0"),
        (
            ["x", "--max-tokens=-3", "--model", "./nowhere"],
            None,
            "max_tokens is -3",
        ),  # before it is looked for
        (["x", "--temperature", "nan"], None, "temperature is nan"),
        (["x" * 300], None, "this model's maximum context length is 256 tokens"),
        (["x", "--model", "./nowhere"], None, "there is no file or folder ./nowhere"),
        (["x", "--max-len", "9999"], None, "model.max_len 9999"),
    ],
)
def test_what_cannot_be_done(words: list[str], stdin: str | None, said: str, command: Command):
    code, out, err = command("run", *words, stdin=stdin, small=True)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")


def test_ctrl_c_ends_the_answer(command: Command, monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []

    def pressed(text: str) -> None:
        written.append(text)
        if len(written) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run, "write_out", pressed)
    code, _, err = command("run", "x", small=True)
    assert code == 130
    assert "ended by abort" in err
    assert written[-1] == "\n"


def test_no_place_for_a_system_message(command: Command, bare: Path):
    code, _, err = command("run", "x", "--system", "y", "--model", str(bare), small=True)
    assert code == 2
    assert "--chat-template" in err


@pytest.mark.model
def test_the_default_model_knows_its_capitals(command: Command, default_model: Path):
    assert default_model.exists()
    words = ("What is the capital of France?", "--temperature=0", "--max-tokens=16", "--memory.share=0.1")
    code, out, err = command("run", *words)
    assert code == 0
    assert "Paris" in out
    assert "tok/s" in err
