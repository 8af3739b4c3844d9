"""The request log: one line for each request, whatever its client calls itself."""

import io
import json
import re

import pytest

from headrace.base.errors import Busy, Refused
from headrace.serve.lines import Lines
from tests.serve.watched import answer, finish, over


def test_a_line_of_text_says_what_a_request_took():
    to = io.StringIO()
    Lines("text", to).ended(over(name="nightly-7"))
    (line,) = to.getvalue().splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ended ", line)
    expected = (
        "id=chatcmpl-1 name=nightly-7 kind=chat cause=stop status=200 queue=0.25 prefill=0.25 ttft=0.5 decode=1.0"
        " tpot=0.1 total=2.0 prompt_tokens=40 cached_tokens=16 generated=11 max_tokens=100 prompts=1 n=1"
        " evictions=1 resumes=0"
    )
    assert line.split(" ", 2)[2] == expected


def test_a_line_of_json_says_the_same():
    to = io.StringIO()
    Lines("json", to).ended(over(cause="abort", first=None, last=None))
    said = json.loads(to.getvalue())
    assert said["event"] == "ended"
    assert (said["cause"], said["status"], said["evictions"]) == ("abort", 499, 1)
    assert "ttft" not in said, "what did not happen is left out"


@pytest.mark.parametrize("form", ["text", "json"])
def test_nobody_forges_a_line_or_a_colour(form: str):
    to = io.StringIO()
    Lines(form, to).ended(over(name='x\n2026 ended id="other"\x1b[31m'))  # type: ignore[arg-type]
    assert len(to.getvalue().splitlines()) == 1
    assert "\x1b" not in to.getvalue()


def test_what_is_refused_has_its_line_without_what_was_said():
    to = io.StringIO()
    lines = Lines("json", to)
    lines.refused("chat", Refused("stop is 'a secret'; expected less", param="stop"), "mine")
    lines.refused("completion", Busy("full", retry_after=3), "0af1")
    first, second = map(json.loads, to.getvalue().splitlines())
    assert first.pop("time")
    assert first == {
        "event": "refused", "id": "mine", "kind": "chat", "cause": "Refused", "status": 400, "param": "stop"
    }  # fmt: skip
    assert (second["cause"], second["status"]) == ("Busy", 429)
    assert "secret" not in to.getvalue()


def test_a_request_that_runs_says_nothing_until_it_ends():
    to = io.StringIO()
    lines, one = Lines("text", to), answer()
    lines.submitted(one)
    assert to.getvalue() == ""
    finish(one, "stop", lines)
    assert len(to.getvalue().splitlines()) == 1
