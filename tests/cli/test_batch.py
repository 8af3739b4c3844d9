"""`headrace batch`."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.api.local import Local
from headrace.cli import _lines
from tests.cli.conftest import Command

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def ask(id: str, url: str = TEXT, method: str = "POST", **body: Any) -> dict[str, Any]:
    default = {"messages": [{"role": "user", "content": "hi"}]} if url == CHAT else {"prompt": "hi"}
    limit = {} if "max_tokens" in body else {"max_tokens": 3}
    return {"custom_id": id, "method": method, "url": url, "body": default | limit | body}


@pytest.fixture
def batch(command: Command, tmp_path: Path) -> Callable[..., tuple[int, str, dict[str, dict[str, Any]]]]:
    """Runs lines (dicts, or raw text) and gives exit code, messages, and answers by custom_id or id."""

    def run(
        *lines: dict[str, Any] | str, words: tuple[str, ...] = ()
    ) -> tuple[int, str, dict[str, dict[str, Any]]]:
        file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        file.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
        code, said, err = command("batch", str(file), "-o", str(out), *words, small=True)
        assert said == ""
        answers = [json.loads(one) for one in out.read_text().splitlines()]
        found = {one["custom_id"] or one["id"]: one for one in answers}
        assert len(found) == len(answers)
        return code, err, found

    return run


def test_both_kinds_of_lines(batch: Callable[..., Any]):
    code, err, found = batch(ask("a", CHAT), ask("b", TEXT), ask("c", CHAT, n=2, temperature=1.0))
    assert code == 0
    assert found.keys() == {"a", "b", "c"}
    assert "3 lines answered" in err
    for id, kind in (("a", "chat.completion"), ("b", "text_completion")):
        assert found[id]["error"] is None
        assert found[id]["response"]["status_code"] == 200
        assert found[id]["response"]["body"]["object"] == kind
    assert len(found["c"]["response"]["body"]["choices"]) == 2


def test_many_more_lines_than_rows(batch: Callable[..., Any]):
    lines = [ask(f"{n}", CHAT if n % 2 else TEXT, max_tokens=1 + n % 5, seed=n) for n in range(40)]
    code, _, found = batch(*lines)
    assert code == 0
    assert found.keys() == {f"{n}" for n in range(40)}
    assert all(one["error"] is None for one in found.values())


def test_every_bad_line_has_its_error(batch: Callable[..., Any]):
    code, err, found = batch(
        ask("good"),
        "{",
        "[]",
        {"method": "POST"},
        ask("good"),
        ask("get", method="GET"),
        ask("where", url="/v1/embeddings"),
        ask("hot", temperature=9),
        ask("long", prompt="x" * 500),
        ask("empty", prompt=""),
        ask("tools", CHAT, tools=[{"type": "function"}]),
        ask("stream", stream=True),
        {"custom_id": "no body", "method": "POST", "url": TEXT},
    )
    assert code == 0
    assert "13 lines answered" in err
    assert "12 of them with an error" in err
    params = {id: one["error"] and one["error"]["param"] for id, one in found.items()}
    assert params == {
        "good": None,
        "batch_req_2": None,
        "batch_req_3": None,
        "batch_req_4": "custom_id",
        "batch_req_5": "custom_id",
        "get": "method",
        "where": "url",
        "hot": "temperature",
        "long": "prompt",
        "empty": "prompt",
        "tools": "tools",
        "stream": "stream",
        "no body": "body",
    }
    for id, one in found.items():
        if id != "good":
            assert one["error"]["code"] == one["response"]["status_code"] == 400
            assert one["error"]["message"]
            assert one["response"]["body"] == {"error": one["error"]}


def test_part_of_a_bad_line_is_not_left_in_the_engine(batch: Callable[..., Any]):
    code, _, found = batch(ask("two", prompt=["fits", "x" * 500]), ask("after"))
    assert code == 0
    assert found["two"]["error"]["param"] == "prompt"
    assert found["after"]["error"] is None


def test_what_is_answered_is_not_repeated(batch: Callable[..., Any], tmp_path: Path):
    batch(ask("a"), "{", ask("b"))
    before = (tmp_path / "out.jsonl").read_text()
    code, err, found = batch(ask("a"), "{", ask("b"), ask("c"))
    assert code == 0
    assert "3 lines are answered" in err
    assert "1 lines answered" in err
    assert found.keys() == {"a", "batch_req_2", "b", "c"}
    assert (tmp_path / "out.jsonl").read_text().startswith(before)
    assert "nothing to do: 4 lines" in batch(ask("a"), "{", ask("b"), ask("c"))[1]


def test_interrupted_and_gone_on(batch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    lines = [ask(f"{n}", max_tokens=8, ignore_eos=True) for n in range(20)]
    step, steps = Local.step, iter(range(10**6))

    def pressed(self: Local) -> Any:
        if next(steps) == 12:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Local, "step", pressed)
    code, err, found = batch(*lines)
    assert code == 130
    assert "run the same command again" in err
    assert 0 < len(found) < 20
    code, _, found = batch(*lines)
    assert code == 0
    assert len(found) == 20


def test_lines_are_read_as_they_are_needed(batch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    """Bounded memory: a line is read when a request before it has ended."""
    read, begun, ended, most = _lines.read, [], [], []

    def counted(path: Path) -> Iterator[_lines.Line]:
        for one in read(path):
            begun.append(one.id)
            most.append(len(begun) - len(ended))
            yield one

    add = _lines.Answers.add
    monkeypatch.setattr(_lines, "read", counted)
    monkeypatch.setattr(_lines.Answers, "add", lambda self, *a: (ended.append(1), add(self, *a)))
    batch(*(ask(f"{n}", max_tokens=2) for n in range(60)))
    assert len(ended) == 60
    assert max(most) <= 2 * 4 + 1  # SMALL has four rows


def test_warnings_come_once(batch: Callable[..., Any]):
    code, err, found = batch(*(ask(f"{n}", model="gpt-9", colour="red") for n in range(3)))
    assert code == 0
    assert err.count("'gpt-9'") == 1
    assert err.count("'colour'") == 1
    assert found["0"]["response"]["body"]["model"].endswith("tiny")


def test_files_that_will_not_do(command: Command, tmp_path: Path):
    file = tmp_path / "in.jsonl"
    for words, said in (
        ((str(file), "-o", str(tmp_path / "out")), "cannot be read: No such file"),
        ((str(tmp_path), "-o", str(tmp_path / "out")), "cannot be read: Is a directory"),
    ):
        code, _, err = command("batch", *words)
        assert (code, said in err) == (2, True)
    file.write_text(json.dumps(ask("a")) + "\n")
    for out, said in (
        (file, "both input and output"),
        (tmp_path, "cannot be written"),
        (tmp_path / "no/out", "cannot be"),
    ):
        code, _, err = command("batch", str(file), "-o", str(out))
        assert (code, said in err) == (2, True)
    assert json.loads(file.read_text()) == ask("a")
