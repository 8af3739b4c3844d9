"""One answer: its text, its times, and how Ctrl-C ends it."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.api.llm import LLM
from headrace.base.errors import Broken
from headrace.cli._answer import Answer, Interrupt, answer
from headrace.engine.request import SamplingParams
from tests.tiny import config


@pytest.fixture(scope="module")
def llm(tiny: Path) -> LLM:
    return LLM(config=config(tiny, load_format="dummy"))


def params(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True, seed=3)


def writes(pieces: list[str], press_after: int = 10**9) -> Callable[[str], None]:
    """Collects what is written; presses Ctrl-C once there is so much of it."""

    def write(text: str) -> None:
        pieces.append(text)
        if len(pieces) == press_after:
            signal.raise_signal(signal.SIGINT)

    return write


def test_the_pieces_are_the_text(llm: LLM):
    pieces: list[str] = []
    got = answer(llm, range(10, 30), params(20), writes(pieces))
    assert "".join(pieces) == got.text
    assert len(pieces) > 3
    assert (got.prompt_tokens, got.tokens, got.finish) == (20, 20, "length")
    assert got.first is not None
    assert 0 < got.first <= got.total


def test_ctrl_c_ends_it_and_keeps_what_was_said(llm: LLM):
    pieces: list[str] = []
    got = answer(llm, range(10, 30), params(200), writes(pieces, press_after=2))
    assert got.finish == "abort"
    assert 2 <= got.tokens < 200
    assert "".join(pieces) == got.text
    assert not llm.local.engine.busy
    assert answer(llm, range(10, 30), params(5), writes([])).tokens == 5


def test_a_long_prompt_can_be_stopped_before_its_first_token(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    steps: list[int] = []
    step = llm.local.step

    def pressed():
        steps.append(1)
        signal.raise_signal(signal.SIGINT)
        return step()

    monkeypatch.setattr(llm.local, "step", pressed)
    got = answer(llm, [7] * 200, params(5), writes([]))
    assert (got.finish, got.tokens, got.first, len(steps)) == ("abort", 0, None, 1)


def test_an_engine_that_fails_is_said(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> None:
        raise ValueError("no such kernel")

    monkeypatch.setattr(llm.local.engine.runner, "run", fails)
    with pytest.raises(Broken, match="failed in the engine"):
        answer(llm, [9] * 5, params(5), writes([]))


def test_the_second_ctrl_c_interrupts():
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_is_as_before_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_a_writer_that_fails_leaves_nothing_in_the_engine(llm: LLM):
    def closed(_: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        answer(llm, [9] * 5, params(50), closed)
    assert not llm.local.engine.busy


@pytest.mark.parametrize(
    ("got", "line"),
    [
        (
            Answer(7, tokens=11, first=0.5, total=2.5, finish="stop"),
            "prompt 7 tokens, first token after 0.50 s, 11 tokens at 5.0 tok/s, 2.50 s in all, ended by stop",
        ),
        (
            Answer(7, cached=4, tokens=1, first=0.5, total=0.5, finish="length"),
            "prompt 7 tokens (4 cached), first token after 0.50 s, 1 tokens, 0.50 s in all, ended by length",
        ),
        (Answer(7, total=1.0, finish="abort"), "prompt 7 tokens, 0 tokens, 1.00 s in all, ended by abort"),
    ],
)
def test_statistics(got: Answer, line: str):
    assert got.line() == line
