"""`headrace chat`: what it remembers, what it obeys, and how it is stopped."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from headrace.base.errors import Broken, Fault, Refused, TooLong
from headrace.cli import chat
from headrace.cli._answer import Answer
from headrace.cli.chat import Conversation
from headrace.engine.request import SamplingParams
from tests.cli.conftest import Command


class Parrot:
    """Stands for a model of `context` tokens; a message costs as many tokens as it has characters."""

    def __init__(self, context: int):
        self.plan = type("Plan", (), {"max_len": context})
        self.seen: list[list[dict[str, Any]]] = []

    def render(self, messages: list[dict[str, Any]]) -> list[int]:
        self.seen.append(messages)
        return [0] * sum(len(message["content"]) for message in messages)


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Conversation]:
    """A conversation with a parrot that says `says` and ends so."""

    def make(
        context: int = 100, says: str = "aye", finish: str = "stop", system: str | None = None
    ) -> Conversation:
        def answered(
            llm: Parrot, prompt: list[int], params: SamplingParams, write: Callable[[str], None]
        ) -> Answer:
            write(says)
            return Answer(len(prompt), text=says, tokens=len(says), finish=finish)

        monkeypatch.setattr(chat, "answer", answered)
        return Conversation(Parrot(context), SamplingParams(), system)  # type: ignore[arg-type]

    return make


def last_seen(conversation: Conversation) -> list[str]:
    """What the model was shown at last."""
    return [message["content"] for message in conversation.llm.seen[-1]]  # type: ignore[attr-defined]


def test_it_remembers(talk: Callable[..., Conversation], capsys: pytest.CaptureFixture[str]):
    conversation = talk(system="be kind")
    conversation.say("one")
    conversation.say("two")
    assert last_seen(conversation) == ["be kind", "one", "aye", "two"]
    assert capsys.readouterr().out == "aye\naye\n"


def test_what_no_longer_fits_is_forgotten_oldest_first(
    talk: Callable[..., Conversation], capsys: pytest.CaptureFixture[str]
):
    conversation = talk(context=40, says="y" * 5, system="s" * 5)  # 30 of the 40 are for what was said
    for text in ("a" * 8, "b" * 8, "c" * 8):
        conversation.say(text)
    assert last_seen(conversation) == ["s" * 5, "b" * 8, "y" * 5, "c" * 8]
    assert "its oldest 2 messages are forgotten" in capsys.readouterr().err


def test_a_message_too_long_is_refused_and_not_remembered(command: Command):
    code, out, err = command("chat", stdin=f"{'x' * 300}\nhi\n", small=True)
    assert code == 0
    assert "error: this model's maximum context length" in err
    assert "hint: shorten the prompt" in err
    assert out.endswith("\n")


def test_a_stopped_answer_stays(talk: Callable[..., Conversation], capsys: pytest.CaptureFixture[str]):
    conversation = talk(says="ay", finish="abort")
    conversation.say("one")
    conversation.say("two")
    assert last_seen(conversation) == ["one", "ay", "two"]
    assert "[stopped]" in capsys.readouterr().err


def test_an_answer_cut_at_the_limit_says_so(
    talk: Callable[..., Conversation], capsys: pytest.CaptureFixture[str]
):
    talk(finish="length").say("one")
    assert "[cut at 3 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("fault", [Broken("the request failed"), TooLong("no place")])
def test_a_message_that_is_not_answered_is_forgotten(
    talk: Callable[..., Conversation], fault: Fault, monkeypatch: pytest.MonkeyPatch
):
    conversation = talk()

    def fails(*_: object) -> Answer:
        raise fault

    monkeypatch.setattr(chat, "answer", fails)
    with pytest.raises(type(fault)):
        conversation.say("one")
    assert conversation.turns == []


# -- piped in -------------------------------------------------------------------------------------------------


def test_a_whole_conversation_from_a_pipe(command: Command):
    lines = ["hi", "", "/system be kind", "/system", "/reset", "/what", "/help"]
    lines += ["again \\", "and again", "/exit", "no"]
    code, out, err = command("chat", "--max-tokens=4", "--temperature=0", stdin="\n".join(lines), small=True)
    assert code == 0
    assert len(out) > 2
    for said in ("system message is set", "be kind", "[forgotten]", "unknown command /what", "Ctrl-D"):
        assert said in err
    assert "[cut at 4" in err
    assert err.count("[cut at") + err.count("[stopped]") <= 2  # "no" was never answered


def test_lines_that_go_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\\\nb\n\nc\\"))
    assert [chat._piped() for _ in range(4)] == ["a\nb", "", "c\n".removesuffix("\n"), None]


def test_bytes_that_are_no_text_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    with pytest.raises(Refused, match="standard input is not text"):
        chat._piped()


def test_a_flag_is_refused_before_a_model_is_looked_for(command: Command):
    code, _, err = command("chat", "--top-p=7", "--model=./nowhere", stdin="hi\n")
    assert code == 2
    assert "top_p is 7.0" in err


def test_there_must_be_a_template(command: Command, bare: Path):
    code, _, err = command("chat", "--model", str(bare), stdin="hi\n", small=True)
    assert code == 2
    assert "no chat template" in err


def test_in_a_terminal(command: Command, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr(Conversation, "say", lambda self, text: said.append(text))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("\x03")  # Ctrl-C where nothing runs
        keys.send_text("first line\x1b\rsecond line\\\rthird\r/system\r\x04")
        code, _, err = command("chat", small=True)
    assert code == 0
    assert said == ["first line\nsecond line\nthird"]
    for note in ("/help for help", "Ctrl-D or /exit leaves", "there is no system message"):
        assert note in err
