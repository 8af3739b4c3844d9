"""/v1/completions over a tiny model."""

from typing import Any

import httpx
import pytest

from tests.serve.reading import error, frames, text

PATH = "/v1/completions"


def ask(http: httpx.Client, prompt: Any = "abc", **more: Any) -> httpx.Response:
    return http.post(PATH, json={"prompt": prompt, "max_tokens": 5, "temperature": 0, **more})


def ids(http: httpx.Client, prompt: str) -> list[int]:
    return http.post("/tokenize", json={"prompt": prompt}).json()["tokens"]


def test_the_four_forms_of_a_prompt(http: httpx.Client):
    one, two = ids(http, "abc"), ids(http, "xyz")
    whole = ask(http).json()
    assert whole["object"] == "text_completion"
    assert whole["id"].startswith("cmpl-")
    said = [ask(http, p).json()["choices"][0]["text"] for p in ("abc", "xyz")]
    for prompt in (["abc", "xyz"], [one, two]):
        choices = ask(http, prompt).json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1]
        assert [choice["text"] for choice in choices] == said
    assert ask(http, one).json()["choices"][0]["text"] == said[0]


def test_sixteen_tokens_unless_told_otherwise(http: httpx.Client):
    body = http.post(PATH, json={"prompt": "abc", "temperature": 0, "ignore_eos": True}).json()
    assert body["usage"]["completion_tokens"] == 16


def test_prompts_come_before_answers_in_the_order(http: httpx.Client):
    body = ask(http, ["abc", "xyz"], n=2, temperature=1.0, seed=1, echo=True).json()
    assert [choice["text"][:3] for choice in body["choices"]] == ["abc", "abc", "xyz", "xyz"]
    assert body["usage"]["prompt_tokens"] == len(ids(http, "abc")) + len(ids(http, "xyz"))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"echo": True},
        {"echo": True, "logprobs": 2},
        {"logprobs": 1},
        {"n": 2, "temperature": 1.0, "seed": 3},
        {"return_token_ids": True},
        {"max_tokens": 0, "echo": True, "logprobs": 1},
        {"logprobs": 1, "return_tokens_as_token_ids": True},
    ],
)
def test_a_stream_says_what_the_whole_says(http: httpx.Client, more: dict[str, Any]):
    prompt = ["abc", "wxyz"]
    whole = ask(http, prompt, **more).json()
    found = frames(ask(http, prompt, stream=True, stream_options={"include_usage": True}, **more))
    assert found[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    for choice in whole["choices"]:
        mine = [c for f in found for c in f["choices"] if c["index"] == choice["index"]]
        assert text(found, choice["index"]) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        if "token_ids" in choice:
            assert [id for c in mine for id in c["token_ids"]] == choice["token_ids"]
        if choice["logprobs"] is not None:
            for name in ("tokens", "text_offset"):
                assert [x for c in mine for x in c["logprobs"][name]] == choice["logprobs"][name]
            pairs = zip(
                [x for c in mine for x in c["logprobs"]["token_logprobs"]],
                choice["logprobs"]["token_logprobs"],
                strict=True,
            )
            assert all(a == b or a == pytest.approx(b, abs=1e-4) for a, b in pairs)


def test_scoring_generates_nothing_and_scores_the_prompt(http: httpx.Client):
    body = ask(http, "abcdef", max_tokens=0, echo=True, logprobs=1).json()
    (choice,) = body["choices"]
    assert choice["text"] == "abcdef"
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert len(choice["logprobs"]["tokens"]) == len(ids(http, "abcdef"))
    assert body["usage"]["completion_tokens"] == 0


def test_as_evaluation_harnesses_ask(http: httpx.Client):
    """Log-probabilities of the prompt and of exactly one token more; greedy ones are the maximum, bit for bit."""
    prompts = [ids(http, "abcdefgh"), ids(http, "xy")]
    more = {"max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    for prompt, choice in zip(prompts, ask(http, prompts, **more).json()["choices"], strict=True):
        found = choice["logprobs"]
        assert len(found["token_logprobs"]) == len(found["top_logprobs"]) == len(prompt) + 1
        assert found["top_logprobs"][0] is None
        for token, logprob, top in list(
            zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
        )[1:]:
            assert top[token] == logprob
            assert max(top.values()) >= logprob
        assert max(found["top_logprobs"][-1].values()) == found["token_logprobs"][-1]


def test_usage_in_every_chunk(http: httpx.Client):
    found = frames(ask(http, stream=True, stream_options={"continuous_usage_stats": True}))
    assert [frame["usage"]["completion_tokens"] for frame in found][-1] == 5


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [999999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [2**70]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"top_k": 2**70}, "top_k"),
        ({"priority": 2**70}, "priority"),
        ({"seed": 2**64}, "seed"),
        ({"prompt": ["a"] * 1000, "n": 2, "temperature": 1}, "n"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(http: httpx.Client, more: dict[str, Any], param: str):
    assert error(ask(http, **more), 400)["param"] == param


def test_text_of_any_kind_is_taken(http: httpx.Client):
    for prompt in ("\x00\x01", "\ufffd", "\u2028", "😀", "<|im_end|>"):
        assert ask(http, prompt).status_code == 200


@pytest.mark.parametrize(("length", "status"), [(1, 200), (255, 200), (256, 400), (257, 400)])
def test_a_prompt_leaves_room_for_a_token_at_least(http: httpx.Client, length: int, status: int):
    answer = ask(http, [5] * length, ignore_eos=True)
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["usage"]["completion_tokens"] == min(5, 256 - length)
    else:
        assert "maximum context length" in error(answer, 400)["message"]


def test_tokens_that_end_or_begin_are_prompts_like_others(http: httpx.Client):
    for prompt in ([0], [1], [2], [258], "<|im_start|>", [2] * 20):
        assert ask(http, prompt).status_code == 200
