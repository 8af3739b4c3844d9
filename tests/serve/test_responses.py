"""/v1/responses over an engine that says what it is told to."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.engine.start import Started
from headrace.serve.responses import Desk
from headrace.serve.settings import Serve
from headrace.serve.shelf import Kept, Shelf
from tests.looped import wait_for
from tests.serve.local import Running, serving
from tests.serve.puppet import Puppet, puppeteered
from tests.serve.reading import error
from tests.text import chats

PATH = "/v1/responses"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "of a city",
    "parameters": CITY,
    "strict": True,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Å"}}\n</tool_call>'
THOUGHT = "<think>\nhm\n</think>\n\n"


@pytest.fixture(scope="module")
def server(tiny_engine: Started) -> Iterator[Running]:
    with serving(puppeteered(tiny_engine, chats.QWEN3), Serve(port=0, keep_responses=20_000)) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


@pytest.fixture
def puppet(server: Running) -> Iterator[Puppet]:
    puppet: Any = server.front.started.engine
    puppet.asked.clear()
    yield puppet
    puppet.endless = False


def say(puppet: Puppet, *texts: str) -> None:
    puppet.says.clear()
    puppet.says.extend(texts)


def ask(http: httpx.Client, input: Any = "hi", **more: Any) -> dict[str, Any]:
    answer = http.post(PATH, json={"input": input, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(http: httpx.Client, input: Any = "hi", **more: Any) -> list[dict[str, Any]]:
    """The events of a stream, checked for their form."""
    answer = http.post(PATH, json={"input": input, "stream": True, **more})
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    frames = answer.text.split("\n\n")
    assert frames.pop() == ""
    found = []
    for n, frame in enumerate(frames):
        name, data = frame.split("\n")
        body = json.loads(data.removeprefix("data: "))
        assert name == f"event: {body['type']}"
        assert body["sequence_number"] == n
        found.append(body)
    assert [body["type"] for body in found[:2]] == ["response.created", "response.in_progress"]
    return found


def bare(response: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from one time to the next."""
    text = json.dumps(
        {k: v for k, v in response.items() if k not in ("id", "created_at", "completed_at", "usage")}
    )
    for item in response["output"]:
        text = text.replace(item["id"], "ID").replace(item.get("call_id", item["id"]), "CALL")
    return json.loads(text)


def test_text(http: httpx.Client, puppet: Puppet):
    say(puppet, "hello you")
    body = ask(http, instructions="be kind", metadata={"a": "b"}, temperature=0.5)
    assert (body["object"], body["status"], body["model"]) == ("response", "completed", "tiny")
    assert body["id"].startswith("resp_")
    [item] = body["output"]
    assert item["type"] == "message"
    assert item["content"] == [
        {"type": "output_text", "text": "hello you", "annotations": [], "logprobs": []}
    ]
    assert (body["instructions"], body["metadata"], body["temperature"]) == ("be kind", {"a": "b"}, 0.5)
    assert (body["error"], body["incomplete_details"]) == (None, None)
    usage = body["usage"]
    assert usage["output_tokens"] == len("hello you") + 1
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}
    assert usage["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}
    assert "system\nbe kind<|im_end|>" in puppet.prompt()
    assert "user\nhi<|im_end|>" in puppet.prompt()


@pytest.mark.parametrize(
    "text", ["hello", f"{THOUGHT}hello", f"{THOUGHT}Wait.\n{CALL}\n{CALL}", CALL, "<think>\nno"]
)
@pytest.mark.parametrize("more", [{}, {"top_logprobs": 1}])
def test_a_stream_ends_with_what_the_whole_is(
    http: httpx.Client, puppet: Puppet, text: str, more: dict[str, Any]
):
    say(puppet, text)
    whole = ask(http, tools=[WEATHER], **more)
    found = events(http, tools=[WEATHER], **more)
    assert found[-1]["type"] == "response.completed"
    streamed = found[-1]["response"]
    assert bare(streamed) == bare(whole)
    assert streamed["usage"] == whole["usage"]
    assert http.get(f"{PATH}/{whole['id']}").json() == whole
    assert found[0]["response"]["status"] == "in_progress"
    assert found[0]["response"]["output"] == []


def test_the_events_of_an_answer(http: httpx.Client, puppet: Puppet):
    say(puppet, f"{THOUGHT}ok\n{CALL}")
    found = events(http, tools=[WEATHER])
    kinds = [body["type"].removeprefix("response.") for body in found]
    once = [kind for n, kind in enumerate(kinds) if n == 0 or kinds[n - 1] != kind]
    assert once == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    output = found[-1]["response"]["output"]
    for index, (kind, name, text) in enumerate(
        [("reasoning_text", "text", "hm"), ("output_text", "text", "ok"),
         ("function_call_arguments", "arguments", '{"city": "Å"}')]
    ):  # fmt: skip
        mine = [body for body in found if body["type"].startswith(f"response.{kind}.")]
        assert "".join(body.get("delta", "") for body in mine) == mine[-1][name] == text
        assert {body["item_id"] for body in mine} == {output[index]["id"]}
        assert {body["output_index"] for body in mine} == {index}
    done = [body["item"] for body in found if body["type"] == "response.output_item.done"]
    assert done == output
    assert [item["status"] for item in output] == ["completed"] * 3
    assert output[2]["name"] == "weather"
    assert output[2]["call_id"].startswith("call_")


def test_an_answer_that_is_cut(http: httpx.Client, puppet: Puppet):
    say(puppet, "a long story")
    body = ask(http, max_output_tokens=5)
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"
    found = events(http, max_output_tokens=5)
    assert found[-1]["type"] == "response.incomplete"
    assert bare(found[-1]["response"]) == bare(body)


def test_log_probabilities(http: httpx.Client, puppet: Puppet):
    say(puppet, f"{THOUGHT}yes")
    body = ask(http, include=["message.output_text.logprobs"], top_logprobs=2)
    [entry, *more] = body["output"][1]["content"][0]["logprobs"]
    assert (entry["token"], entry["bytes"], len(entry["top_logprobs"])) == ("y", [ord("y")], 2)
    assert [one["token"] for one in more] == ["e", "s"]
    found = events(http, top_logprobs=2)
    deltas = [body for body in found if body["type"] == "response.output_text.delta"]
    assert [one["token"] for body in deltas for one in body["logprobs"]] == ["y", "e", "s"]


@pytest.mark.parametrize("text", ["a😀b", "é", "a < b <to c", f"pre{CALL}post"])
def test_every_token_that_is_shown_has_its_log_probability(http: httpx.Client, puppet: Puppet, text: str):
    """Also where its text came late: as half a character, or because it might have begun a call."""
    say(puppet, text)
    body = ask(http, include=["message.output_text.logprobs"], tools=[WEATHER])
    shown = [item["content"][0] for item in body["output"] if item["type"] == "message"]
    for part in shown:
        assert bytes(octet for one in part["logprobs"] for octet in one["bytes"]) == part["text"].encode()
    deltas = [e for e in events(http, top_logprobs=0, include=["message.output_text.logprobs"], tools=[WEATHER])
              if e["type"] == "response.output_text.delta"]  # fmt: skip
    for delta in deltas:
        assert b"".join(bytes(one["bytes"]) for one in delta["logprobs"]) == delta["delta"].encode()
    assert "".join(delta["delta"] for delta in deltas) == "".join(part["text"] for part in shown) != ""


def test_a_conversation_goes_on(http: httpx.Client, puppet: Puppet):
    say(puppet, f"{THOUGHT}Let me see.\n{CALL}", "rain")
    first = ask(http, "weather?", instructions="be brief", tools=[WEATHER])
    call = first["output"][2]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "12 mm"}
    second = ask(http, [output], previous_response_id=first["id"], tools=[WEATHER])
    prompt = puppet.prompt()
    assert "be brief" not in prompt  # instructions hold for one response
    assert "user\nweather?" in prompt
    assert f"assistant\nLet me see.\n{CALL}" in prompt
    assert "<tool_response>\n12 mm\n</tool_response>" in prompt
    assert second["previous_response_id"] == first["id"]
    # and the same from items alone
    again = ask(http, [{"role": "user", "content": "weather?"}, *first["output"], output], tools=[WEATHER])
    assert again["status"] == "completed"
    assert puppet.prompt() == prompt


def test_what_is_kept_makes_room_for_what_comes(http: httpx.Client, puppet: Puppet):
    say(puppet, "a")
    ids = [ask(http, "x" * 500)["id"] for _ in range(20)]
    found = [http.get(f"{PATH}/{id}").status_code for id in ids]
    assert found[-1] == 200
    assert found[0] == 404
    assert found == sorted(found, reverse=True)
    error(http.post(PATH, json={"input": "x", "previous_response_id": ids[0]}), 404)
    assert (
        http.get(f"{PATH}/{ask(http, metadata={'a': 'x' * 30_000})['id']}").status_code == 404
    )  # too large alone


def test_not_kept(http: httpx.Client, puppet: Puppet):
    assert http.get(f"{PATH}/{ask(http, store=False)['id']}").status_code == 404
    found = events(http, store=False)
    said = error(http.get(f"{PATH}/{found[-1]['response']['id']}"), 404)
    assert said["param"] == "response_id"


def test_deleted(http: httpx.Client, puppet: Puppet):
    id = ask(http)["id"]
    assert http.delete(f"{PATH}/{id}").json() == {"id": id, "object": "response", "deleted": True}
    for answer in (http.get(f"{PATH}/{id}"), http.delete(f"{PATH}/{id}"), http.post(f"{PATH}/{id}/cancel")):
        error(answer, 404)


def test_the_input_is_kept_too(http: httpx.Client, puppet: Puppet):
    id = ask(http, "hello")["id"]
    body = http.get(f"{PATH}/{id}/input_items").json()
    [item] = body["data"]
    assert (item["role"], item["content"], body["first_id"], body["has_more"]) == (
        "user",
        "hello",
        item["id"],
        False,
    )


def test_in_the_background(http: httpx.Client, puppet: Puppet):
    say(puppet, "at last")
    body = ask(http, background=True)
    assert (body["status"], body["background"], body["usage"]) == ("in_progress", True, None)
    done = until_over(http, body["id"])
    assert (done["status"], done["output"][0]["content"][0]["text"]) == ("completed", "at last")
    again = http.post(f"{PATH}/{body['id']}/cancel").json()
    assert again == done  # what has ended stays as it is


def until_over(http: httpx.Client, id: str) -> dict[str, Any]:
    def over() -> bool:
        return http.get(f"{PATH}/{id}").json()["status"] not in ("queued", "in_progress")

    wait_for(over)
    return http.get(f"{PATH}/{id}").json()


def test_cancelled_in_the_background(http: httpx.Client, server: Running, puppet: Puppet):
    puppet.endless = True
    id = ask(http, background=True)["id"]
    error(http.post(PATH, json={"input": "x", "previous_response_id": id}), 400)
    body = http.post(f"{PATH}/{id}/cancel").json()
    assert (body["id"], body["status"]) == (id, "cancelled")
    assert http.get(f"{PATH}/{id}").json() == body
    wait_for(lambda: not server.front.answers)
    wait_for(lambda: not puppet.busy)


def test_cancelled_in_mid_stream(http: httpx.Client, server: Running, puppet: Puppet):
    puppet.endless = True
    lines = []
    with http.stream("POST", PATH, json={"input": "x", "stream": True}) as answer:
        for line in answer.iter_lines():
            lines.append(line)
            if len(lines) == 40:
                first = json.loads(lines[1].removeprefix("data: "))["response"]["id"]
                with httpx.Client(base_url=server.url) as other:
                    assert other.post(f"{PATH}/{first}/cancel").json()["status"] == "cancelled"
    last = json.loads(next(line for line in reversed(lines) if line).removeprefix("data: "))
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "cancelled")
    wait_for(lambda: not server.front.answers)


def test_deleted_in_the_background(http: httpx.Client, server: Running, puppet: Puppet):
    puppet.endless = True
    id = ask(http, background=True)["id"]
    assert http.delete(f"{PATH}/{id}").status_code == 200
    error(http.get(f"{PATH}/{id}"), 404)
    wait_for(lambda: not server.front.answers)


def test_a_client_that_leaves_ends_it(http: httpx.Client, server: Running, puppet: Puppet):
    puppet.endless = True
    with http.stream("POST", PATH, json={"input": "x", "stream": True}) as answer:
        next(answer.iter_lines())
    wait_for(lambda: not server.front.answers and not server.app.state.desk.open)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "word " * 5000}, "input"),
        ({"input": []}, "input"),
        ({"input": "x", "reasoning": {"effort": "x"}}, "reasoning.effort"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format"),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_a_response(http: httpx.Client, body: Any, param: str):
    said = error(http.post(PATH, json=body), 400)
    assert said["param"] == param
    assert param in said["message"]


def test_unknown_models_are_refused(http: httpx.Client):
    assert error(http.post(PATH, json={"input": "hi", "model": "other"}), 404)["param"] == "model"


def test_a_failure_in_the_background(http: httpx.Client, puppet: Puppet):
    puppet.endless = True
    body = until_over(http, ask(http, background=True, timeout_ms=150)["id"])
    assert body["status"] == "failed"
    assert body["error"]["code"] == "server_error"
    assert body["error"]["message"]


def test_a_failure_in_mid_stream(http: httpx.Client, server: Running, puppet: Puppet):
    puppet.endless = True
    found = events(http, timeout_ms=150)
    assert found[-1]["type"] == "response.failed"
    assert found[-1]["response"]["status"] == "failed"
    assert found[-1]["response"]["error"]["code"] == "server_error"
    assert found[-1]["response"]["error"]["message"]


# -- calls in chats, streamed by the same server


def test_a_chat_streams_calls_as_it_tells_them_whole(http: httpx.Client, puppet: Puppet):
    say(puppet, f"{THOUGHT}Let me see.\n{CALL}\n{CALL}")
    tool = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool]}
    whole = http.post("/v1/chat/completions", json=body).json()
    answer = http.post(
        "/v1/chat/completions", json=body | {"stream": True, "stream_options": {"include_usage": True}}
    )
    frames = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    said: dict[str, Any] = {"content": "", "reasoning": "", "reasoning_content": "", "calls": {}}
    for choice in (choice for frame in frames for choice in frame["choices"]):
        for name in ("content", "reasoning", "reasoning_content"):
            said[name] += choice["delta"].get(name) or ""
        for call in choice["delta"].get("tool_calls", []):
            kept = said["calls"].setdefault(call["index"], {"name": None, "arguments": ""})
            kept["name"] = kept["name"] or call["function"].get("name")
            kept["arguments"] += call["function"].get("arguments", "")
    [choice] = whole["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == frames[-2]["choices"][0]["finish_reason"] == "tool_calls"
    for name in ("content", "reasoning", "reasoning_content"):
        assert said[name] == message[name]
    assert list(said["calls"].values()) == [call["function"] for call in message["tool_calls"]]
    assert frames[-1]["usage"] == whole["usage"]
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(THOUGHT) - 2


def test_two_processes_know_of_each_others_responses(tiny_engine: Started, tmp_path: Path):
    with (
        serving(puppeteered(tiny_engine, chats.QWEN3), shared=tmp_path) as one,
        serving(puppeteered(tiny_engine, chats.QWEN3), shared=tmp_path) as other,
        httpx.Client(base_url=one.url) as here,
        httpx.Client(base_url=other.url) as there,
    ):
        first = ask(here)
        assert there.get(f"{PATH}/{first['id']}").json() == first
        assert ask(there, previous_response_id=first["id"])["status"] == "completed"
        one.front.started.engine.endless = True  # type: ignore[attr-defined]
        id = ask(here, background=True)["id"]
        assert there.get(f"{PATH}/{id}").json()["status"] == "in_progress"
        assert there.post(f"{PATH}/{id}/cancel").json()["status"] == "cancelled"
        there.post(PATH, json={"input": "and?", "previous_response_id": id, "max_output_tokens": 5})
        asked = other.front.started.engine.prompt()  # type: ignore[attr-defined]
        assert "user\nhi<" in asked
        assert "user\nand?" in asked
        assert until_over(here, id)["status"] == "cancelled"
        wait_for(lambda: not one.front.answers)
        id = ask(here, background=True)["id"]
        assert there.delete(f"{PATH}/{id}").status_code == 200
        wait_for(lambda: not one.front.answers)
        for client in (here, there):
            wait_for(lambda client=client: client.get(f"{PATH}/{id}").status_code == 404)


def test_nobody_waits_for_a_response_whose_process_died():
    shelf = Shelf(10_000)
    for n in range(2):
        shelf.put(f"resp_{n}", Kept({"id": f"resp_{n}", "status": "in_progress", "error": None}), n)
    found = [Desk(shelf, 1).found(f"resp_{n}").response for n in range(2)]
    assert [one["status"] for one in found] == ["in_progress", "failed"]
    assert "died" in found[1]["error"]["message"]
