"""OpenAI bodies into what the engine understands."""

from typing import Any

import pytest

from headrace.base.errors import Refused, TooLong
from headrace.engine.dialect import ROUTES, read_chat, read_completion
from headrace.engine.intake import Intake
from headrace.engine.request import SamplingParams
from headrace.text.tokenizer import Tokenizer
from tests.text.vocabularies import byte_level_metadata

DEFAULTS = SamplingParams(temperature=0.3, top_p=0.9)
HI = [{"role": "user", "content": "hi"}]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:"
    "{% endif %}{{ mood }}{{ reasoning_effort }}{% for d in documents or [] %}{{ d.text }}{% endfor %}"
)


@pytest.fixture(scope="module")
def intake() -> Intake:
    metadata = byte_level_metadata() | {"tokenizer.chat_template": TEMPLATE}
    tokenizer = Tokenizer.from_gguf(metadata)
    return Intake(tokenizer, 200, tokenizer.vocab_size, frozenset({2}))


def said(intake: Intake, ids: tuple[int, ...]) -> str:
    return intake.text_tokenizer.decode(ids, skip_special_tokens=False)


def test_a_chat(intake: Intake):
    ask = read_chat({"messages": HI, "temperature": 1, "max_tokens": 7, "model": "m"}, intake, DEFAULTS)
    assert said(intake, ask.prompts[0]) == "user: hi\nassistant:"
    assert (ask.kind, ask.model, ask.logprobs, ask.echo, ask.stream) == ("chat", "m", None, False, False)
    assert (ask.params.temperature, ask.params.top_p, ask.params.max_tokens) == (1.0, 0.9, 7)


def test_a_chat_may_fill_the_context_and_a_completion_has_16_tokens(intake: Intake):
    assert read_chat({"messages": HI}, intake, DEFAULTS).params.max_tokens is None
    assert read_completion({"prompt": "hi"}, intake, DEFAULTS).params.max_tokens == 16


def test_null_is_not_given(intake: Intake):
    body = {
        "messages": HI,
        "temperature": None,
        "stop": None,
        "n": None,
        "tools": None,
        "stream": None,
        "model": None,
    }
    assert read_chat(body, intake, DEFAULTS).params == read_chat({"messages": HI}, intake, DEFAULTS).params


def test_every_field_of_the_same_name(intake: Intake):
    given: dict[str, Any] = {
        "n": 2, "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.2, "temperature": 0.9,
        "top_p": 0.8, "top_k": 40, "min_p": 0.05, "seed": 5, "stop": ["a"], "stop_token_ids": [3], "bad_words": ["b"],
        "include_stop_str_in_output": True, "ignore_eos": True, "min_tokens": 2, "prompt_logprobs": 1,
        "skip_special_tokens": False, "spaces_between_special_tokens": False, "logit_bias": {"5": 2},
        "allowed_token_ids": [5, 6], "max_tokens": 9,
    }  # fmt: skip
    for ask in (
        read_chat(given | {"messages": HI}, intake, DEFAULTS),
        read_completion(given | {"prompt": "x"}, intake, DEFAULTS),
    ):
        assert ask.params == SamplingParams(**given)
        assert ask.unknown == ()


def test_the_new_name_of_max_tokens_wins(intake: Intake):
    body = {"messages": HI, "max_tokens": 5, "max_completion_tokens": 6}
    assert read_chat(body, intake, DEFAULTS).params.max_tokens == 6
    with pytest.raises(Refused, match="max_completion_tokens is 0") as found:
        read_chat(body | {"max_completion_tokens": 0}, intake, DEFAULTS)
    assert found.value.param == "max_completion_tokens"
    with pytest.raises(Refused, match="max_tokens is 0") as found:
        read_chat({"messages": HI, "max_tokens": 0}, intake, DEFAULTS)
    assert found.value.param == "max_tokens"


def test_log_probabilities(intake: Intake):
    ask = read_chat({"messages": HI, "logprobs": True}, intake, DEFAULTS)
    assert (ask.logprobs, ask.params.logprobs) == (0, 0)
    ask = read_chat({"messages": HI, "logprobs": True, "top_logprobs": 3}, intake, DEFAULTS)
    assert (ask.logprobs, ask.params.logprobs) == (3, 3)
    ask = read_completion({"prompt": "x", "logprobs": 2}, intake, DEFAULTS)
    assert (ask.logprobs, ask.params.logprobs, ask.params.prompt_logprobs) == (2, 2, None)


def test_what_the_template_takes(intake: Intake):
    body = {
        "messages": HI,
        "chat_template_kwargs": {"mood": "glad"},
        "reasoning_effort": "low",
        "documents": [{"text": "doc"}],
        "add_generation_prompt": False,
    }
    assert said(intake, read_chat(body, intake, DEFAULTS).prompts[0]) == "user: hi\ngladlowdoc"


def test_an_answer_begun_is_continued_and_repeated(intake: Intake):
    body = {
        "messages": [*HI, {"role": "assistant", "content": "well"}],
        "continue_final_message": True,
        "echo": True,
    }
    ask = read_chat(body, intake, DEFAULTS)
    assert said(intake, ask.prompts[0]) == "user: hi\nassistant: well"
    assert ask.before == ("well",)


def test_all_forms_of_a_prompt(intake: Intake):
    ids = intake.ids("hi")
    for prompt, n in (("hi", 1), (ids, 1), (["hi", "hi"], 2), ([ids, ids], 2)):
        ask = read_completion({"prompt": prompt}, intake, DEFAULTS)
        assert ask.prompts == (tuple(ids),) * n
        assert ask.before == ("",) * n


def test_echo(intake: Intake):
    ask = read_completion({"prompt": ["hi", "ho"], "echo": True, "logprobs": 1}, intake, DEFAULTS)
    assert ask.before == ("hi", "ho")
    assert ask.params.prompt_logprobs == 1
    ids = intake.ids("hi there")
    assert read_completion({"prompt": ids, "echo": True}, intake, DEFAULTS).before == ("hi there",)


def test_scoring_a_prompt(intake: Intake):
    ask = read_completion({"prompt": "hi", "echo": True, "logprobs": 1, "max_tokens": 0}, intake, DEFAULTS)
    assert ask.scoring
    assert ask.params.max_tokens == 1
    with pytest.raises(Refused, match="max_tokens is 0"):
        read_completion({"prompt": "hi", "max_tokens": 0}, intake, DEFAULTS)


def test_the_rest(intake: Intake):
    body = {
        "messages": HI, "cache_salt": "s", "priority": -3, "return_token_ids": True, "return_tokens_as_token_ids": True,
        "stream": True, "stream_options": {"include_usage": True}, "user": "u", "metadata": {}, "colour": 1,
        "response_format": {"type": "text"}, "best_of": 1, "suffix": "", "tools": [{}], "tool_choice": "none",
    }  # fmt: skip
    ask = read_chat(body, intake, DEFAULTS)
    assert (ask.salt, ask.priority, ask.show_ids, ask.bare_ids, ask.stream) == ("s", -3, True, True, True)
    assert ask.stream_options == {"include_usage": True}
    assert ask.unknown == ("colour",)


BOTH_REFUSE = [
    ("body", None),
    ("temperature", {"temperature": 3}),
    ("temperature", {"temperature": "hot"}),
    ("best_of", {"best_of": 2}),
    ("best_of", {"best_of": True}),
    ("use_beam_search", {"use_beam_search": True}),
    ("response_format", {"response_format": {"type": "yaml"}}),
    ("response_format", {"response_format": {"type": "json_schema"}}),
    (
        "response_format",
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "odd"}}}},
    ),
    ("guided_regex", {"guided_regex": "a{"}),
    ("guided_regex", {"guided_regex": ["a"]}),
    ("guided_regex", {"guided_regex": "a+", "response_format": {"type": "json_object"}}),
    ("structured_outputs", {"structured_outputs": {"choice": ["a"], "regex": "a"}}),
    ("structured_outputs", {"structured_outputs": {"words": ["a"]}}),
    ("structured_outputs", {"structured_outputs": {}}),
    ("structured_outputs", {"structured_outputs": "a"}),
    ("stream", {"stream": 1}),
    ("stream_options", {"stream_options": []}),
    ("priority", {"priority": 1.5}),
    ("priority", {"priority": True}),
    ("cache_salt", {"cache_salt": ""}),
    ("cache_salt", {"cache_salt": 5}),
    ("model", {"model": ["m"]}),
    ("seed", {"seed": 2**70}),
]
CHAT_REFUSES = [
    ("tools", {"tools": [{}]}),
    ("messages", {"messages": []}),
    ("messages", {"messages": "hi"}),
    ("messages", {"messages": [{"content": "x"}]}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}),
    ("top_logprobs", {"top_logprobs": 2}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": True}),
    ("logprobs", {"logprobs": 2}),
    ("chat_template_kwargs", {"chat_template_kwargs": 3}),
    ("continue_final_message", {"continue_final_message": True, "add_generation_prompt": True}),
    ("chat_template", {"chat_template": "{{ x }}"}),
]
COMPLETION_REFUSES = [
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": []}),
    ("prompt", {"prompt": [[]]}),
    ("prompt", {"prompt": ["a", 1]}),
    ("prompt", {"prompt": [10**9]}),
    ("prompt", {"prompt": [True]}),
    ("prompt", {"prompt": {"a": 1}}),
    ("logprobs", {"logprobs": True}),
    ("suffix", {"suffix": "end"}),
]
REFUSED = [
    *(
        ("/v1/chat/completions", more and {"messages": HI} | more, param)
        for param, more in BOTH_REFUSE + CHAT_REFUSES
    ),
    *(
        ("/v1/completions", more and {"prompt": "x"} | more, param)
        for param, more in BOTH_REFUSE + COMPLETION_REFUSES
    ),
]


@pytest.mark.parametrize(("url", "body", "param"), REFUSED)
def test_what_is_refused(url: str, body: Any, param: str, intake: Intake):
    with pytest.raises(Refused) as caught:
        ROUTES[url](body, intake, DEFAULTS)
    assert caught.value.param == param


def test_too_long_is_said_by_the_intake(intake: Intake):
    with pytest.raises(TooLong, match="maximum context length is 200 tokens"):
        read_completion({"prompt": "x y " * 300}, intake, DEFAULTS)


@pytest.mark.parametrize("times", [300, 30_000])
def test_a_chat_that_is_too_long_names_the_field_it_has(times: int, intake: Intake):
    with pytest.raises(TooLong, match="maximum context length is 200 tokens") as caught:
        read_chat({"messages": [{"role": "user", "content": "x y " * times}]}, intake, DEFAULTS)
    assert caught.value.param == "messages"
    assert "the prompt of messages has" in caught.value.message
