"""Bodies and items of /v1/responses as what a chat asks for, over an engine that says what it is told to."""

from typing import Any

import httpx
import pytest

from tests.serve.puppet import Puppet
from tests.serve.reading import error
from tests.serve.test_responses import CALL, PATH, WEATHER, ask, events, http, puppet, say, server

__all__ = ["http", "puppet", "server"]
PATCH = {"type": "custom", "name": "patch", "description": "change files", "format": {"type": "text"}}


def test_a_form_for_the_text(http: httpx.Client, puppet: Puppet):
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    body = ask(http, text={"format": form}, tool_choice="auto")
    assert body["text"]["format"] == form
    request = puppet.asked[-1]
    assert request.grammar is not None
    assert "json" in request.grammar.source
    ask(http, text={"format": {"type": "text"}})
    assert puppet.asked[-1].grammar is None


def test_effort(http: httpx.Client, puppet: Puppet):
    body = ask(http, reasoning={"effort": "none"})
    assert body["reasoning"] == {"effort": "none", "summary": None}
    assert puppet.prompt().endswith("</think>\n\n")


def test_choice_of_tools(http: httpx.Client, puppet: Puppet):
    say(puppet, CALL)
    now = {"type": "function", "name": "now", "parameters": None}
    ask(http, tools=[WEATHER, now], tool_choice={"type": "function", "name": "weather"})
    assert puppet.asked[-1].grammar is not None
    assert "now" in puppet.prompt()
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "weather"}],
    }
    ask(http, tools=[WEATHER, now], tool_choice=allowed)
    assert puppet.asked[-1].grammar is not None
    assert "now" not in puppet.prompt()
    unnamed = {"type": "function", "name": ["weather"]}
    for tools, choice in (([unnamed], allowed), ([WEATHER], allowed | {"tools": [unnamed]})):
        error(http.post(PATH, json={"input": "hi", "tools": tools, "tool_choice": choice}), 400)
    body = ask(http, tools=[WEATHER], tool_choice="none")
    assert [item["type"] for item in body["output"]] == ["message"]


def test_a_tool_that_takes_text(http: httpx.Client, puppet: Puppet):
    say(
        puppet,
        '<tool_call>\n{"name": "patch", "arguments": {"input": "*** a\\n\\"b\\""}}\n</tool_call>',
        "done",
    )
    found = events(http, tools=[PATCH])
    [call] = found[-1]["response"]["output"]
    assert (call["type"], call["input"]) == ("custom_tool_call", '*** a\n"b"')
    deltas = [body["delta"] for body in found if body["type"] == "response.custom_tool_call_input.delta"]
    assert "".join(deltas) == call["input"]
    output = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "ok"}
    ask(http, [{"role": "user", "content": "go"}, call, output], tools=[PATCH])
    assert '{"name": "patch", "arguments": {"input": "*** a\\n\\"b\\""}}' in puppet.prompt()
    say(puppet, '<tool_call>\n{"name": "patch", "arguments": {"inp')
    [call] = ask(http, tools=[PATCH])["output"]
    assert call["input"].startswith("{")  # what it is, where it is not what was asked for


def test_items_become_messages(http: httpx.Client, puppet: Puppet):
    ask(
        http,
        [
            {"role": "developer", "content": [{"type": "input_text", "text": "one"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "two"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "x"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "three"}]},
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "assistant", "content": "three more"},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "but"}]},
            {"type": "message", "role": "assistant", "content": "three again"},
            {"role": "user", "content": "four"},
        ],
        instructions="zero",
    )
    prompt = puppet.prompt()
    turns = [turn.split("<|im_end|>")[0] for turn in prompt.split("<|im_start|>")[1:]]
    assert turns == [
        "system\nzero\n\none",
        "user\ntwo",
        "assistant\nthree",
        "assistant\nthree more",
        "assistant\nthree again",
        "user\nfour",
        "assistant\n",
    ]


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("input", {"input": None}),
        ("input", {"input": []}),
        ("input", {"input": ["x"]}),
        ("input", {"input": [{"type": "item_reference", "id": "x"}]}),
        ("input", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
        ("input", {"input": [{"type": "function_call_output", "output": "x"}]}),
        ("input", {"input": [{"type": "message", "content": "x"}]}),
        ("input", {"input": [{"role": "user", "content": 1}]}),
        ("instructions", {"instructions": 1}),
        ("max_output_tokens", {"max_output_tokens": 0}),
        ("metadata", {"metadata": {"a": 1}}),
        ("store", {"store": 1}),
        ("background", {"background": True, "stream": True}),
        ("background", {"background": True, "store": False}),
        ("truncation", {"truncation": "auto"}),
        ("conversation", {"conversation": "conv_1"}),
        ("previous_response_id", {"previous_response_id": 3}),
        ("text", {"text": []}),
        ("text.format", {"text": {"format": "json"}}),
        ("text.format", {"text": {"format": {"type": "xml"}}}),
        ("reasoning", {"reasoning": "high"}),
        ("reasoning.effort", {"reasoning": {"effort": "huge"}}),
        ("tools", {"tools": [{"type": "web_search"}]}),
        ("tools", {"tools": [{"type": "function"}]}),
        ("tools", {"tools": [1]}),
        ("tool_choice", {"tool_choice": {"type": "mcp"}}),
        ("tool_choice", {"tool_choice": "required"}),
        ("include", {"include": "all"}),
        ("temperature", {"temperature": 5}),
        ("top_logprobs", {"top_logprobs": 99}),
        ("suffix", {"suffix": "x"}),
    ],
)
def test_what_is_refused(http: httpx.Client, param: str, body: dict[str, Any]):
    assert error(http.post(PATH, json={"input": "hi", **body}), 400)["param"] == param
