"""Answers into OpenAI objects."""

import json
import math
from typing import Any

import pytest

from headrace.base.errors import Broken, Busy, Refused, UnknownName
from headrace.engine.dialect import Ask
from headrace.engine.reply import error, reply, usage
from headrace.engine.request import Event, Logprobs, Request, SamplingParams
from headrace.engine.stream import Stream
from headrace.text.tokenizer import Tokenizer
from tests.text.vocabularies import byte_level_metadata

TOKENIZER = Tokenizer.from_gguf(byte_level_metadata())
PROMPT = tuple(TOKENIZER.encode("ab"))
A, B, E = (TOKENIZER.encode(text)[0] for text in ("a", "b", "é"))


def found(token: int, logprob: float = -0.5) -> Logprobs:
    return Logprobs(logprob, 2, [(A, -0.25), (token, logprob)])


def stream(params: SamplingParams, tokens: list[int], finish: str = "length", cached: int = 0) -> Stream:
    """One that has received `tokens`."""
    made = Stream(Request(id="1", prompt=PROMPT, params=params), TOKENIZER)
    wanted = params.logprobs is not None
    for n, token in enumerate(tokens):
        prompt = [found(t) for t in PROMPT[1:]] if n == 0 and params.prompt_logprobs is not None else None
        end = finish if n == len(tokens) - 1 else None
        made.take(Event("1", token, end, None, found(token) if wanted else None, prompt, cached))
    return made


def asked(
    kind: str = "completion", prompts: int = 1, params: SamplingParams | None = None, **more: Any
) -> Ask:
    before = more.pop("before", ("",) * prompts)
    return Ask(
        kind=kind, prompts=(PROMPT,) * prompts, params=params or SamplingParams(), before=before, **more
    )  # type: ignore[arg-type]


def whole(ask: Ask, *streams: Stream) -> dict[str, Any]:
    return json.loads(json.dumps(reply(ask, "id-1", 12345, "m", streams, TOKENIZER), allow_nan=False))


def test_a_completion():
    ask = asked()
    assert whole(ask, stream(ask.params, [A, B], cached=1)) == {
        "id": "id-1",
        "object": "text_completion",
        "created": 12345,
        "model": "m",
        "choices": [
            {"index": 0, "text": "ab", "logprobs": None, "finish_reason": "length", "stop_reason": None}
        ],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 2,
            "total_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }


def test_a_chat():
    ask = asked("chat", before=("so ",))
    said = whole(ask, stream(ask.params, [A], finish="stop"))
    assert said["object"] == "chat.completion"
    assert said["choices"][0]["message"] == {"role": "assistant", "content": "so ", "refusal": None}
    assert said["choices"][0]["finish_reason"] == "stop"


def test_several_prompts_with_several_answers():
    params = SamplingParams(n=2)
    ask = asked(prompts=2, params=params, before=("x", "y"))
    streams = [stream(params, [A] * n, cached=1) for n in (1, 2, 3, 4)]
    said = whole(ask, *streams)
    assert [choice["index"] for choice in said["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in said["choices"]] == ["xa", "xaa", "yaaa", "yaaaa"]
    assert usage(ask, streams) == {
        "prompt_tokens": 4,
        "completion_tokens": 10,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_log_probabilities_of_a_chat():
    params = SamplingParams(logprobs=1)
    ask = asked("chat", params=params, logprobs=1)
    (content,) = whole(ask, stream(params, [E]))["choices"][0]["logprobs"]["content"]
    top = content.pop("top_logprobs")
    first = TOKENIZER.token_bytes(E)
    assert content == {
        "token": TOKENIZER.decode([E], skip_special_tokens=False), "logprob": -0.5, "bytes": list(first)
    }  # fmt: skip
    assert top == [{"token": "a", "logprob": -0.25, "bytes": [97]}]


def test_no_likely_tokens_where_none_are_asked_for():
    params = SamplingParams(logprobs=0)
    ask = asked("chat", params=params, logprobs=0)
    assert whole(ask, stream(params, [B]))["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_log_probabilities_of_a_completion():
    params = SamplingParams(logprobs=1)
    ask = asked(params=params, logprobs=1)
    assert whole(ask, stream(params, [A, B, B]))["choices"][0]["logprobs"] == {
        "text_offset": [0, 1, 2],
        "token_logprobs": [-0.5] * 3,
        "tokens": ["a", "b", "b"],
        "top_logprobs": [{"a": -0.5}, {"a": -0.25, "b": -0.5}, {"a": -0.25, "b": -0.5}],
    }


def test_a_prompt_scored():
    params = SamplingParams(logprobs=1, prompt_logprobs=1, max_tokens=1)
    ask = asked(params=params, logprobs=1, echo=True, scoring=True, before=("ab",))
    said = whole(ask, stream(params, [B]))
    (choice,) = said["choices"]
    assert choice["text"] == "ab"
    assert choice["logprobs"]["tokens"] == ["a", "b"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5]
    assert choice["logprobs"]["top_logprobs"] == [None, {"a": -0.25, "b": -0.5}]
    assert choice["prompt_logprobs"][0] is None
    assert choice["prompt_logprobs"][1][str(B)] == {"logprob": -0.5, "rank": 2, "decoded_token": "b"}
    assert said["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize(("named", "reason"), [((), None), ((A,), A)])
def test_the_models_own_end_is_no_reason(named: tuple[int, ...], reason: int | None):
    ask = asked(params=SamplingParams(stop_token_ids=named))
    made = Stream(Request(id="1", prompt=PROMPT, params=ask.params, eos_ids=frozenset({A})), TOKENIZER)
    made.take(Event("1", A, "stop", A))
    assert whole(ask, made)["choices"][0]["stop_reason"] == reason


def test_token_ids():
    params = SamplingParams(logprobs=0)
    ask = asked(params=params, logprobs=0, show_ids=True, bare_ids=True)
    (choice,) = whole(ask, stream(params, [A, B]))["choices"]
    assert choice["token_ids"] == [A, B]
    assert choice["prompt_token_ids"] == list(PROMPT)
    assert choice["logprobs"]["tokens"] == [f"token_id:{A}", f"token_id:{B}"]
    ask = asked("chat", params=params, logprobs=0, bare_ids=True)
    (content,) = whole(ask, stream(params, [A]))["choices"][0]["logprobs"]["content"]
    assert bytes(content["bytes"]).decode() == content["token"] == f"token_id:{A}"


def test_an_impossible_token_is_a_number_that_json_has():
    params = SamplingParams(logprobs=0)
    made = stream(params, [])
    made.take(Event("1", A, "length", None, Logprobs(-math.inf, 9, [])))
    ask = asked(params=params, logprobs=0)
    assert whole(ask, made)["choices"][0]["logprobs"]["token_logprobs"] == [-9999.0]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Refused("n is 0", param="n", hint="use 1"),
            {"message": "n is 0 (use 1)", "type": "BadRequestError", "param": "n", "code": 400},
        ),
        (
            UnknownName("no model"),
            {"message": "no model", "type": "NotFoundError", "param": None, "code": 404},
        ),
        (Busy("full"), {"message": "full", "type": "RateLimitError", "param": None, "code": 429}),
        (Broken("ouch"), {"message": "ouch", "type": "InternalServerError", "param": None, "code": 500}),
    ],
)
def test_errors(fault: Refused, said: dict[str, Any]):
    assert error(fault) == said
