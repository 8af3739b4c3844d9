"""/v1/chat/completions over a tiny model."""

import json
from typing import Any

import httpx
import pytest

from headrace.base.errors import Late
from headrace.serve.chat import _with_role
from tests.serve.local import Running
from tests.serve.reading import error, frames, text

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


def ask(http: httpx.Client, **more: Any) -> httpx.Response:
    return http.post(PATH, json={"messages": HI, "max_tokens": 6, "temperature": 0, **more})


def test_a_whole_reply(http: httpx.Client):
    body = ask(http).json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert body["id"].startswith("chatcmpl-")
    (choice,) = body["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    assert choice["stop_reason"] is None
    usage = body["usage"]
    assert usage["completion_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0


def test_a_stream_says_what_the_whole_says(http: httpx.Client):
    whole = ask(http, max_tokens=40).json()["choices"][0]
    found = frames(ask(http, max_tokens=40, stream=True))
    assert text(found) == whole["message"]["content"]
    assert {frame["object"] for frame in found} == {"chat.completion.chunk"}
    assert len({frame["id"] for frame in found}) == 1
    *before, last = [c["finish_reason"] for f in found for c in f["choices"]]
    assert (set(before), last) == ({None}, whole["finish_reason"])
    assert all("usage" not in frame for frame in found)


def test_the_role_comes_with_the_first_token_and_only_then(http: httpx.Client):
    found = frames(ask(http, stream=True, logprobs=True))
    first, *rest = [frame["choices"][0] for frame in found]
    assert first["delta"]["role"] == "assistant"
    assert isinstance(first["delta"]["content"], str)
    assert len(first["logprobs"]["content"]) == 1
    assert not any("role" in choice["delta"] for choice in rest)


def test_usage_comes_last_and_without_choices(http: httpx.Client):
    found = frames(ask(http, stream=True, stream_options={"include_usage": True}))
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == 6
    assert all(frame["usage"] is None for frame in found[:-1])


def test_usage_in_every_chunk(http: httpx.Client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = frames(ask(http, stream=True, stream_options=options))
    counts = [frame["usage"]["completion_tokens"] for frame in found]
    assert counts == sorted(counts)
    assert counts[0] >= 1
    assert counts[-1] == 6
    assert len({frame["usage"]["prompt_tokens"] for frame in found}) == 1


def test_several_answers_are_told_apart(http: httpx.Client):
    more = {"n": 3, "temperature": 1.5, "seed": 7}
    whole = ask(http, **more).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["completion_tokens"] == 18
    found = frames(ask(http, stream=True, **more))
    for choice in whole["choices"]:
        assert text(found, choice["index"]) == choice["message"]["content"]
    roles = [c["index"] for f in found for c in f["choices"] if "role" in c["delta"]]
    assert sorted(roles) == [0, 1, 2]


def test_log_probabilities_in_a_stream_are_those_of_the_whole(http: httpx.Client):
    more = {"logprobs": True, "top_logprobs": 3}
    whole = ask(http, **more).json()["choices"][0]["logprobs"]["content"]
    found = frames(ask(http, stream=True, **more))
    streamed = [entry for f in found for entry in f["choices"][0]["logprobs"]["content"]]
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in whole]
    assert [len(entry["top_logprobs"]) for entry in streamed] == [3] * 6
    for one, other in zip(streamed, whole, strict=True):
        assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)
        assert bytes(one["bytes"]) == bytes(other["bytes"])


def test_token_ids_on_demand(http: httpx.Client):
    whole = ask(http, return_token_ids=True).json()["choices"][0]
    found = [f["choices"][0] for f in frames(ask(http, stream=True, return_token_ids=True))]
    assert [id for choice in found for id in choice["token_ids"]] == whole["token_ids"]
    assert found[0]["prompt_token_ids"] == whole["prompt_token_ids"]


def test_a_stop_string_ends_it_and_is_named(http: httpx.Client):
    said = ask(http, max_tokens=40).json()["choices"][0]["message"]["content"]
    stop = next(c for c in said[1:] if c.isascii())
    whole = ask(http, max_tokens=40, stop=[stop]).json()["choices"][0]
    assert whole["finish_reason"] == "stop"
    assert whole["stop_reason"] == stop
    assert whole["message"]["content"] == said[: said.index(stop)]
    found = frames(ask(http, max_tokens=40, stop=stop, stream=True))
    assert text(found) == whole["message"]["content"]
    assert found[-1]["choices"][0]["stop_reason"] == stop


def test_a_message_is_continued_and_repeated(http: httpx.Client):
    messages = [*HI, {"role": "assistant", "content": "Well"}]
    more = {
        "messages": messages,
        "echo": True,
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    whole = http.post(PATH, json={"max_tokens": 4, "temperature": 0, **more}).json()
    said = whole["choices"][0]["message"]["content"]
    assert said.startswith("Well")
    found = frames(http.post(PATH, json={"max_tokens": 4, "temperature": 0, "stream": True, **more}))
    assert text(found) == said


def test_timings_on_demand(http: httpx.Client):
    assert "timings" not in ask(http).json()
    for body in (ask(http, timings=True).json(), frames(ask(http, stream=True, timings=True))[-1]):
        timings = body["timings"]
        assert timings["predicted_n"] == 6
        assert timings["prompt_n"] + timings["cache_n"] == ask(http).json()["usage"]["prompt_tokens"]
        assert all(timings[name] >= 0 for name in ("queue_ms", "ttft_ms", "total_ms", "predicted_ms"))


def test_the_clients_name_of_a_request(http: httpx.Client):
    named = http.post(PATH, json={"messages": HI, "max_tokens": 1}, headers={"X-Request-Id": "bench-17"})
    assert named.json()["id"] == "chatcmpl-bench-17"
    assert named.headers["x-request-id"] == "bench-17"
    assert ask(http, request_id="mine").json()["id"] == "chatcmpl-mine"
    bad = http.post(PATH, json={"messages": HI, "max_tokens": 1}, headers={"X-Request-Id": "a b; c"})
    assert bad.headers["x-request-id"] in bad.json()["id"]
    assert " " not in bad.headers["x-request-id"]


def test_a_model_goes_by_each_of_its_names(http: httpx.Client):
    assert ask(http, model="second").json()["model"] == "second"
    assert ask(http, model="").json()["model"] == "tiny"
    said = error(ask(http, model="gpt-7"), 404)
    assert said["param"] == "model"
    assert "tiny" in said["message"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"messages": [{"role": "user", "content": "a" * 3000}]}, "messages"),
        ({"chat_template": "{{ 7 * 7 }}"}, "chat_template"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"__class__": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(http: httpx.Client, more: dict[str, Any], param: str):
    assert error(ask(http, **more), 400)["param"] == param


def test_unknown_fields_are_no_reason_to_refuse(http: httpx.Client):
    assert (
        ask(http, no_stop_trim=True, separate_reasoning=True, return_hidden_states=False).status_code == 200
    )


def test_time_over_before_the_first_token_is_a_status(server: Running, http: httpx.Client):
    server.front.held.clear()
    try:
        for stream in (False, True):
            assert error(ask(http, timeout_ms=50, stream=stream), 408)["message"]
    finally:
        server.front.held.set()


@pytest.mark.parametrize("path", [PATH, "/v1/completions"])
def test_a_fault_in_mid_stream_is_a_frame_and_no_ending(server: Running, http: httpx.Client, path: str):
    body = {"messages": HI} if path == PATH else {"prompt": "hi"}
    body |= {"max_tokens": 200, "ignore_eos": True, "stream": True}
    try:
        with http.stream("POST", path, json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.front.held.clear()
            server.front.interrupt(Late("time is over"))
            *before, fault, _, done, _ = lines
    finally:
        server.front.held.set()
    assert not [line for line in before if '"finish_reason":"' in line]
    assert json.loads(fault.removeprefix("data: "))["error"]["code"] == 408
    assert done == "data: [DONE]"


@pytest.mark.parametrize(
    ("delta", "made"),
    [
        (b"{}", b'{"role":"assistant","content":""}'),
        (b'{"content":"a"}', b'{"role":"assistant","content":"a"}'),
        (b'{"reasoning":"a"}', b'{"role":"assistant","content":"","reasoning":"a"}'),
    ],
)
def test_the_first_delta_has_role_and_content(delta: bytes, made: bytes):
    assert _with_role(delta) == made
