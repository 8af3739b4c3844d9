"""Programs that people use with such servers, unchanged, against `headrace serve`."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.whole.offered import Offered, model, offered

KEY = "secret-key"
HI: Any = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Answer(BaseModel):
    """What is to be parsed."""

    colour: Literal["red", "green"]
    sure: bool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offered]:
    folder = model(tmp_path_factory.mktemp("clients") / "tiny")
    with offered(folder, environ={"HEADRACE_API_KEY": KEY}) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Offered) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=120) as made:
        yield made


def test_models(client: openai.OpenAI):
    (only,) = client.models.list().data
    assert only.id == "tiny"
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-7")


def test_a_chat_whole_and_in_pieces(client: openai.OpenAI):
    more: Any = {"model": "tiny", "messages": HI, "max_completion_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**more)
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 12
    chunks = list(client.chat.completions.create(**more, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_the_stream_helper(client: openai.OpenAI):
    form = {"structured_outputs": {"choice": ["yes", "no"]}}  # the helper takes an end by length for an error
    with client.chat.completions.stream(model="tiny", messages=HI, max_tokens=8, extra_body=form) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(events)
    assert final.choices[0].message.content in ("yes", "no")
    assert final.choices[0].finish_reason == "stop"


def test_several_answers_and_log_probabilities(client: openai.OpenAI):
    made = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=3, n=2, temperature=1, logprobs=True, top_logprobs=2
    )
    assert len(made.choices) == 2
    for choice in made.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)


def test_completions_with_log_probabilities(client: openai.OpenAI):
    more: Any = {"model": "tiny", "max_tokens": 4, "temperature": 0}
    made = client.completions.create(prompt=["abc", "x"], logprobs=2, echo=True, **more)
    assert [choice.text[0] for choice in made.choices] == ["a", "x"]
    found = made.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert len(found.tokens) == len(found.token_logprobs)
    pieces = client.completions.create(prompt="abc", stream=True, **more)
    assert "abc" + "".join(piece.choices[0].text for piece in pieces) == made.choices[0].text


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_in_a_wanted_form_is_parsed(client: openai.OpenAI, seed: int):
    made = client.chat.completions.parse(
        model="tiny", messages=HI, response_format=Answer, max_tokens=400, temperature=1, seed=seed
    )
    found = made.choices[0].message.parsed
    assert isinstance(found, Answer)


def test_tools_whole_and_in_pieces(client: openai.OpenAI):
    more: Any = {"model": "tiny", "messages": HI, "tools": [WEATHER], "tool_choice": "required"}
    more |= {"max_tokens": 600, "temperature": 0}
    whole = client.chat.completions.create(**more).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.tool_calls
    first: Any = whole.message.tool_calls[0]
    assert first.function.name == "weather"
    assert json.loads(first.function.arguments)["city"] in ("Rome", "Oslo")
    with client.chat.completions.stream(**more) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.message.tool_calls
    same: Any = final.message.tool_calls[0]
    assert (same.function.name, same.function.arguments) == (first.function.name, first.function.arguments)
    messages = [*HI, whole.message.to_dict(), {"role": "tool", "tool_call_id": first.id, "content": "rain"}]
    assert client.chat.completions.create(
        **{**more, "messages": messages, "tool_choice": "none", "max_tokens": 3}
    )


def test_errors_are_the_clients_own(client: openai.OpenAI, server: Offered):
    with pytest.raises(openai.NotFoundError) as found:
        client.chat.completions.create(model="gpt-7", messages=HI)
    assert found.value.param == "model"
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(model="tiny", messages=HI, temperature=9)
    assert found.value.param == "temperature"
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as denied:
        stranger.models.list()
    assert denied.value.code == "invalid_api_key"


def test_the_name_of_a_request_comes_back(client: openai.OpenAI):
    made = client.chat.completions.with_raw_response.create(
        model="tiny", messages=HI, max_tokens=1, extra_headers={"X-Request-Id": "mine-1"}
    )
    assert made.headers["x-request-id"] == "mine-1"
    assert made.parse().id == "chatcmpl-mine-1"


def test_curl(server: Offered):
    if (curl := shutil.which("curl")) is None:
        pytest.skip("needs the program curl")

    def run(path: str, *words: str) -> str:
        done = subprocess.run(
            [curl, "-sS", server.url + path, *words], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    key, kind = f"Authorization: Bearer {KEY}", "Content-Type: application/json"
    assert json.loads(run("/v1/models", "-H", key))["data"][0]["id"] == "tiny"
    assert json.loads(run("/v1/models"))["error"]["code"] == "invalid_api_key"
    body = json.dumps({"messages": HI, "max_tokens": 3, "stream": True})
    said = run("/v1/chat/completions", "-N", "-H", key, "-H", kind, "-d", body)
    assert said.startswith("data: {")
    assert said.endswith("data: [DONE]\n\n")
    # without saying what it is, curl sends a form
    assert "content type" in json.loads(run("/v1/completions", "-H", key, "-d", body))["error"]["message"]
