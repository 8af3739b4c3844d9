"""The small endpoints over a tiny model."""

from typing import Any

import httpx
import pytest

from headrace import __version__
from headrace.base.errors import Busy
from headrace.serve.small import MOST_TEXT
from tests.serve.local import Running
from tests.serve.reading import error
from tests.tiny import TEMPLATE

HI = [{"role": "user", "content": "hi"}]


def test_models(http: httpx.Client):
    body = http.get("/v1/models").json()
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["tiny", "second"]
    one = http.get("/v1/models/second").json()
    assert one == body["data"][1]
    assert one["max_model_len"] == 256
    assert {"object", "created", "owned_by", "root", "parent", "permission"} <= set(one)


def test_an_unknown_model(http: httpx.Client):
    assert error(http.get("/v1/models/gpt%2F7"), 404)["param"] == "model"


def test_tokens_there_and_back(http: httpx.Client):
    text = "a\u00e9\U0001f600\x00 b"
    made = http.post("/tokenize", json={"model": "tiny", "prompt": text, "return_token_strs": True}).json()
    assert made["count"] == len(made["tokens"]) == len(made["token_strs"]) == len(text.encode())
    assert made["max_model_len"] == 256
    assert http.post("/detokenize", json={"tokens": made["tokens"]}).json() == {"prompt": text}


def test_messages_become_the_tokens_that_a_chat_would_have(http: httpx.Client):
    tokens = http.post("/tokenize", json={"messages": HI}).json()
    assert tokens["token_strs"] is None
    rendered = http.post("/v1/chat/completions/render", json={"messages": HI}).json()
    assert tokens["tokens"] == rendered["token_ids"]
    assert rendered["prompt"] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert rendered["features"] is None
    assert rendered["request_id"].startswith("chatcmpl-")
    without = http.post("/tokenize", json={"messages": HI, "add_generation_prompt": False}).json()
    assert without["count"] < tokens["count"]


def test_rendered_completions_are_a_list(http: httpx.Client):
    found = http.post("/v1/completions/render", json={"prompt": ["a", "bc"], "max_tokens": 3}).json()
    assert [len(one["token_ids"]) for one in found] == [1, 2]
    assert [one["max_tokens"] for one in found] == [3, 3]
    assert len({one["request_id"] for one in found}) == 2
    assert found[0]["sampling_params"]["max_tokens"] == 3


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a" * (MOST_TEXT + 1)}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": "no"}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "return_token_strs": "no"}, "return_token_strs"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [1.5]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/v1/chat/completions/render", {"messages": [{}]}, "messages"),
    ],
)
def test_refusals_name_the_field(http: httpx.Client, path: str, body: dict[str, Any], param: str):
    assert error(http.post(path, json=body), 400)["param"] == param


def test_the_tokenizer_says_what_harnesses_want_to_know(http: httpx.Client):
    body = http.get("/tokenizer_info").json()
    assert body["eos_token"] == "<|im_end|>"
    assert body["chat_template"] == TEMPLATE
    assert {"bos_token", "pad_token"} <= set(body)


def test_version_load_and_life(http: httpx.Client):
    assert http.get("/version").json() == {"version": __version__}
    assert http.get("/load").json() == {"server_load": 0}
    for path in ("/health", "/health/live", "/health/ready", "/ping"):
        answer = http.get(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert http.head(path).status_code == 200
    assert http.post("/ping").status_code == 200


def test_until_the_model_is_there_nothing_else_is(server: Running, http: httpx.Client):
    with server.front.without_engine():
        assert http.get("/health/live").status_code == 200
        for method, path, body in [
            ("GET", "/health", None),
            ("GET", "/health/ready", None),
            ("GET", "/v1/models", None),
            ("POST", "/v1/chat/completions", {"messages": HI}),
            ("POST", "/v1/completions", {"prompt": "a"}),
            ("POST", "/tokenize", {"prompt": "a"}),
        ]:
            answer = http.request(method, path, json=body)
            error(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1


def test_a_full_queue_says_when_to_come_back(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    def full(requests: int) -> None:
        raise Busy("the queue is full", retry_after=2.3)

    monkeypatch.setattr(server.front, "admit", full)
    answer = http.post("/v1/completions", json={"prompt": "a"})
    assert error(answer, 429)["type"] == "RateLimitError"
    assert answer.headers["retry-after"] == "3"  # 2.3 seconds, rounded up
    assert error(http.post("/v1/chat/completions", json={"messages": HI}), 429)
    # there is no place, which is said before anything is made of the input
    assert error(http.post("/v1/responses", json={"input": [{"type": "unheard of"}]}), 429)
    # what will not be generated needs no place, and what is wrong is wrong
    assert http.post("/v1/completions/render", json={"prompt": "a"}).status_code == 200
    error(http.post("/v1/completions", json={"prompt": "a", "stop": ["a"] * 99}), 400)
