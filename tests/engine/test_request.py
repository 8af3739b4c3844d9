"""What a request may ask for: every range, every message, and the way over the wire."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from headrace.base.errors import Refused, UnknownName
from headrace.engine import request
from headrace.engine.request import Event, Logprobs, Request, SamplingParams, check_vocab
from headrace.engine.structured import StructuredOutputsParams

BAD: list[tuple[str, Any]] = [
    *(("n", x) for x in (0, -1, 1.0, True, "1", None, 16385)),
    *((name, x) for name in ("presence_penalty", "frequency_penalty") for x in (-2.1, 2.1, math.nan, "0", None, True)),
    *(("repetition_penalty", x) for x in (0, -1, math.inf, math.nan, "1", True, 10**400)),
    *(("temperature", x) for x in (-0.1, 2.1, math.nan, math.inf, -math.inf, "0.5", True, None, [1.0])),
    *(("top_p", x) for x in (0, -0.5, 1.1, math.nan, "1", False)),
    *(("top_k", x) for x in (-2, 1.5, "5", True, None)),
    *(("min_p", x) for x in (-0.1, 1.1, math.nan, True)),
    *(("seed", x) for x in (1.5, "1", 2**63, -(2**63) - 1, True)),
    *(("stop", x) for x in ("", [""], ["a", ""], [1], 5, b"a", {"a": 1}, ["x"] * 65)),
    *(("stop_token_ids", x) for x in (5, [-1], [1.0], ["1"], [True], "12")),
    *(("bad_words", x) for x in ([""], [3], 3, ["x"] * 129)),
    *(("max_tokens", x) for x in (0, -5, 1.0, "16", True)),
    *(("min_tokens", x) for x in (-1, 0.5, "1", 17)),
    *((name, x) for name in ("logprobs", "prompt_logprobs") for x in (-2, 0.5, "1", True)),
    *(("logit_bias", x) for x in ([1], {1: 101}, {1: -101}, {1: math.nan}, {"a": 1})),
    *(("logit_bias", x) for x in ({-1: 1}, {1: "2"}, {True: 1}, {1.5: 1})),
    *(("allowed_token_ids", x) for x in ([], 3, [-1], [1.0], ["1"])),
    *(
        (name, x)
        for name in ("include_stop_str_in_output", "ignore_eos", "detokenize", "skip_special_tokens")
        for x in (1, 0, "yes", None)
    ),
    ("spaces_between_special_tokens", 1),
]  # fmt: skip

GOOD: list[tuple[str, Any, Any]] = [
    ("temperature", 0, 0.0),
    ("temperature", 2, 2.0),
    ("temperature", 1e-5, 0.01),
    ("temperature", np.float32(0.5), 0.5),
    ("top_k", -1, -1),
    ("top_k", np.int64(7), 7),
    ("top_p", 1, 1.0),
    ("top_p", 1e-9, 1e-9),
    ("min_p", 1, 1.0),
    ("presence_penalty", -2, -2.0),
    ("repetition_penalty", 0.1, 0.1),
    ("repetition_penalty", 1e-50, 1e-4),
    ("repetition_penalty", 1e300, 1e4),
    ("seed", -1, None),
    ("seed", 2**63 - 1, 2**63 - 1),
    ("seed", -(2**63), -(2**63)),
    ("stop", None, ()),
    ("stop", "ab", ("ab",)),
    ("stop", ["a", "b"], ("a", "b")),
    ("stop_token_ids", None, ()),
    ("stop_token_ids", [3, 4], (3, 4)),
    ("stop_token_ids", {5}, (5,)),
    ("bad_words", ["x"], ("x",)),
    ("max_tokens", None, None),
    ("logprobs", -1, -1),
    ("prompt_logprobs", 0, 0),
    ("logit_bias", {"12": 1, 13: -100}, {12: 1.0, 13: -100.0}),
    ("logit_bias", {}, None),
    ("allowed_token_ids", [1], (1,)),
    ("allowed_token_ids", None, None),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values_are_refused_by_name(name, value):
    with pytest.raises(Refused, match=name) as refused:
        SamplingParams(**{name: value})
    assert refused.value.param == name
    assert "expected" in refused.value.message
    assert "or None" not in str(refused.value), "that is said otherwise in JSON and on the command line"
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(("name", "value", "kept"), GOOD)
def test_good_values_are_kept_in_one_form(name, value, kept):
    found = getattr(SamplingParams(**{name: value}), name)
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"n": 2, "temperature": 0}, "n"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"stop": "x", "detokenize": False}, "stop"),
    ],
)
def test_values_that_contradict_each_other(asked, param):
    with pytest.raises(Refused, match=r"expected") as refused:
        SamplingParams(**asked)
    assert refused.value.param == param
    assert refused.value.hint


def test_values_that_look_contradictory_but_are_not():
    assert SamplingParams(n=2, temperature=0.5).n == 2
    assert SamplingParams(min_tokens=100, max_tokens=None).min_tokens == 100


@pytest.mark.parametrize(
    ("made", "said", "near"),
    [(SamplingParams, "temprature", "temperature"), (StructuredOutputsParams, "regx", "regex")],
)
def test_a_field_that_there_is_not_is_answered_with_the_nearest(made, said, near):
    with pytest.raises(UnknownName, match=f"unknown {made.__name__} field '{said}'") as refused:
        made(**{said: 1})
    assert refused.value.param == said
    assert f"did you mean '{near}'?" in refused.value.hint


def test_defaults_need_no_check():
    for name, default in request._DEFAULTS.items():
        kept = request._FIELDS[name](name, default)
        assert (kept, type(kept)) == (default, type(default))


def test_params_are_frozen():
    params = SamplingParams()
    with pytest.raises(AttributeError, match="immutable"):
        params.temperature = 0.0  # type: ignore[misc]


def test_greedy_is_temperature_zero_or_one_token_to_choose_from():
    assert SamplingParams(temperature=0).greedy
    assert SamplingParams(temperature=1.5, top_k=1).greedy
    assert not SamplingParams(temperature=0.01).greedy


def test_request_knows_its_longest_and_whether_its_prefix_may_be_shared():
    request = Request(id="a", prompt=(1, 2, 3), max_tokens=5)
    assert request.longest == 8
    assert request.cacheable
    assert not Request(id="b", prompt=(1,), params=SamplingParams(prompt_logprobs=0)).cacheable
    assert Request(id="c", prompt=[4, 5]).prompt == (4, 5)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"prompt": ()}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"params": SamplingParams(allowed_token_ids=[7]), "bad": ((7,),)}, "allowed_token_ids"),
        (
            {"params": SamplingParams(allowed_token_ids=[7, 8], min_tokens=1), "stop_ids": frozenset({7, 8})},
            "allowed_token_ids",
        ),
    ],
)
def test_requests_that_could_generate_nothing(asked, param):
    with pytest.raises(Refused) as refused:
        Request(**{"id": "a", "prompt": (1,)} | asked)
    assert refused.value.param == param


def test_a_request_whose_choice_is_narrow_but_not_empty():
    params = SamplingParams(allowed_token_ids=[7, 8], min_tokens=1)
    assert Request(id="a", prompt=(1,), params=params, stop_ids=frozenset({7}), bad=((7,), (8, 8))).bad


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"logit_bias": {10: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": [3, 10, 11, 12, 13, 14, 15]}, "allowed_token_ids"),
        ({"stop_token_ids": [11]}, "stop_token_ids"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ],
)
def test_what_only_the_model_can_refuse(asked, name):
    params = SamplingParams(**asked)
    with pytest.raises(Refused, match=name) as refused:
        check_vocab(params, 10)
    assert refused.value.param == name


def test_what_the_model_can_do():
    check_vocab(
        SamplingParams(logit_bias={9: 1}, allowed_token_ids=[0, 9], stop_token_ids=[9], logprobs=20), 10
    )
    check_vocab(SamplingParams(logprobs=-1, prompt_logprobs=5000), 10, max_logprobs=-1)


def test_requests_and_events_survive_the_wire():
    params = SamplingParams(
        temperature=0.5, stop="x", logit_bias={"3": 1}, allowed_token_ids=[3], seed=-(2**63)
    )
    request = Request(
        id="é", prompt=(1, 2), params=params, stop_ids=frozenset({2}), bad=((1, 2),), salt="s", priority=-1
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=Request) == request
    event = Event("a", 5, "stop", 5, Logprobs(-0.5, 1, [(5, -0.5)]), [Logprobs(-1.0, 3, [])], cached=16)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=Event) == event


def test_bad_values_are_refused_on_the_wire_too():
    with pytest.raises(Refused, match="temperature"):
        msgspec.json.decode(b'{"temperature": 3.0}', type=SamplingParams)
