"""Tools and thinking in chat bodies, and in the replies to them."""

import json
import random
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken

from headrace.base.errors import Refused
from headrace.engine.calling import MOST_TOOLS, Voice, spelled
from headrace.engine.dialect import Ask, read_chat
from headrace.engine.intake import Intake
from headrace.engine.reply import reply
from headrace.engine.request import Event, Request, SamplingParams
from headrace.engine.stream import Stream
from headrace.engine.structured import StructuredOutputsParams
from headrace.text.formats import Formats, tool_formats
from headrace.text.parts import Tool
from headrace.text.tokenizer import Tokenizer
from tests.text import chats
from tests.text.vocabularies import byte_level_metadata

DEFAULTS = SamplingParams()
HI = [{"role": "user", "content": "hi"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "of a city", "parameters": CITY},
}
NOW = {"type": "function", "function": {"name": "now"}}
SPECIAL = ["[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "</think>"]


def intake(template: str) -> Intake:
    metadata = byte_level_metadata() | {"tokenizer.chat_template": template}
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *SPECIAL]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], *[3] * len(SPECIAL)]
    tokenizer = Tokenizer.from_gguf(metadata)
    return Intake(tokenizer, 4000, tokenizer.vocab_size, frozenset({2}))


HERMES = intake(chats.HERMES)
QWEN3 = intake(chats.QWEN3)
MISTRAL = intake(chats.MISTRAL)


def read(into: Intake = HERMES, messages: Any = HI, **body: Any) -> Ask:
    return read_chat({"messages": messages} | body, into, DEFAULTS)


def prompt(into: Intake, ask: Ask) -> str:
    return into.text_tokenizer.decode(ask.prompts[0], skip_special_tokens=False)


def voice(ask: Ask) -> Voice:
    assert ask.voice is not None
    return ask.voice


def answered(into: Intake, ask: Ask, text: str, finish: str = "stop") -> dict[str, Any]:
    """The reply to `ask`, when the model writes `text`."""
    stream = Stream(Request(id="1", prompt=ask.prompts[0], params=ask.params), into.tokenizer)
    for token in into.text_tokenizer.encode(text, add_special_tokens=False):
        stream.take(Event("1", token))
    stream.take(Event("1", 2 if finish == "stop" else None, finish, 2 if finish == "stop" else None))
    return json.loads(json.dumps(reply(ask, "id", 1, "m", [stream], into.tokenizer)))


# -- bodies


def test_tools_are_shown_and_may_be_called():
    ask = read(tools=[WEATHER, NOW])
    assert "of a city" in prompt(HERMES, ask)
    assert [tool.name for tool in voice(ask).tools] == ["weather", "now"]
    assert not voice(ask).forced
    assert voice(ask).many


def test_without_tools_nothing_is_a_call():
    for body in ({}, {"tools": []}, {"tools": None}, {"tools": [WEATHER], "tool_choice": "none"}):
        ask = read(**body)
        assert ask.speech() is None
        assert "of a city" not in prompt(HERMES, ask)


@pytest.mark.parametrize(
    ("choice", "names", "forced"),
    [
        ("auto", ["weather", "now"], False),
        (None, ["weather", "now"], False),
        ("required", ["weather", "now"], True),
        ({"type": "function", "function": {"name": "now"}}, ["now"], True),
    ],
)
def test_tool_choice(choice: Any, names: list[str], forced: bool):
    ask = read(tools=[WEATHER, NOW], tool_choice=choice, parallel_tool_calls=False)
    assert ([tool.name for tool in voice(ask).tools], voice(ask).forced) == (names, forced)
    assert not voice(ask).many
    assert "of a city" in prompt(HERMES, ask)  # all of them are shown
    assert (ask.params.structured_outputs is not None) == forced


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("tools", {"tools": "weather"}),
        ("tools", {"tools": [{}]}),
        ("tools", {"tools": ["weather"]}),
        ("tools", {"tools": [{"type": "custom", "function": {"name": "x"}}]}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "a", "strict": 1}}]}),
        ("tools", {"tools": [NOW, NOW]}),
        ("tools", {"tools": [NOW] * (MOST_TOOLS + 1)}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tools": [], "tool_choice": "required"}),
        ("tool_choice", {"tools": [NOW], "tool_choice": "always"}),
        ("tool_choice", {"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "then"}}}),
        ("tool_choice", {"tools": [NOW], "tool_choice": {"type": "function"}}),
        ("parallel_tool_calls", {"tools": [NOW], "parallel_tool_calls": "no"}),
        ("include_reasoning", {"include_reasoning": 1}),
        ("reasoning_effort", {"reasoning_effort": "a lot"}),
    ],
)
def test_what_is_refused(param: str, body: dict[str, Any]):
    with pytest.raises(Refused) as caught:
        read(**body)
    assert caught.value.param == param


@pytest.mark.parametrize("template", [chats.PLAIN, chats.STRANGE])
def test_tools_for_a_model_without_any_or_of_an_unknown_kind(template: str):
    with pytest.raises(Refused) as caught:
        read(intake(template), tools=[NOW])
    assert caught.value.param == "tools"
    assert read(intake(template), tools=[NOW], tool_choice="none").speech() is None


def test_the_way_back_of_a_call():
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Å"}'}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "developer", "content": "be brief"},
    ]
    text = prompt(HERMES, read(messages=messages, tools=[WEATHER]))
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Å"}}\n</tool_call>' in text
    assert "<tool_response>\nrain\n</tool_response>" in text
    assert "<|im_start|>system\nbe brief" in text


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"ci', '{"invalid": "{\\"ci"}'),
        ("[1]", '{"invalid": [1]}'),
        ("", "{}"),
        (None, "{}"),
        ({"city": "x"}, '{"city": "x"}'),
    ],
)
def test_broken_arguments_do_not_break_what_comes_after(arguments: Any, shown: str):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages = [*HI, {"role": "assistant", "tool_calls": [call]}, *HI]
    assert f'"arguments": {shown}}}' in prompt(HERMES, read(messages=messages))


def test_calls_that_are_none_are_refused():
    with pytest.raises(Refused) as caught:
        read(messages=[*HI, {"role": "assistant", "tool_calls": ["x"]}])
    assert caught.value.param.startswith("messages")


def test_ids_of_calls_are_fitted_to_templates_that_insist():
    call = {"id": "call_of_another", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    short = {**call, "id": "abcdefgh1"}
    messages = [
        *HI,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "noon"},
        *HI,
        {"role": "assistant", "tool_calls": [short]},
        {"role": "tool", "tool_call_id": "abcdefgh1", "content": "one"},
    ]
    text = prompt(MISTRAL, read(MISTRAL, messages, tools=[NOW]))
    [id] = {part.split('"')[0] for part in text.split('"id": "')[1:]} - {"abcdefgh1"}
    assert f'"call_id": "{id}"' in text
    assert '"call_id": "abcdefgh1"' in text
    # and ours are such
    [mine] = voice(read(MISTRAL, tools=[NOW])).speech().whole('[TOOL_CALLS] [{"name": "now"}]').calls
    assert len(mine.id) == 9
    assert mine.id.isalnum()


def test_the_name_of_a_tool_is_told_with_its_result():
    template = "{% for m in messages %}{{ m.role }}:{{ m.name }}:{{ m.content }};{% endfor %}{% if tools %}{% endif %}"
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [
        *HI,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]
    into = intake(template)
    assert "tool:now:noon" in prompt(into, read(into, messages))


def test_effort():
    assert prompt(QWEN3, read(QWEN3)).endswith("assistant\n")
    assert prompt(QWEN3, read(QWEN3, reasoning_effort="none")).endswith("</think>\n\n")
    assert prompt(QWEN3, read(QWEN3, chat_template_kwargs={"enable_thinking": False})).endswith(
        "</think>\n\n"
    )
    kwargs = {"enable_thinking": True}
    ask = read(QWEN3, reasoning_effort="none", chat_template_kwargs=kwargs)
    assert prompt(QWEN3, ask).endswith("assistant\n")  # what is said more plainly counts


def test_a_thought_that_the_prompt_begins():
    into = intake(chats.QWEN3_THINKING)
    assert voice(read(into)).begun
    assert not voice(read(into, add_generation_prompt=False)).begun
    assert not voice(read(QWEN3, [{"role": "user", "content": "<think>"}])).begun
    messages = [*HI, {"role": "assistant", "content": "<think>so"}]
    assert voice(read(QWEN3, messages, continue_final_message=True)).begun
    messages = [*HI, {"role": "assistant", "content": "<think>so</think>It"}]
    assert not voice(read(QWEN3, messages, continue_final_message=True)).begun


# -- replies


def test_a_reply_with_calls():
    ask = read(tools=[WEATHER])
    text = 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Å"}}\n</tool_call>'
    [choice] = answered(HERMES, ask, text)["choices"]
    [call] = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    assert (call["type"], call["function"]) == ("function", {"name": "weather", "arguments": '{"city": "Å"}'})
    assert call["id"].startswith("call_")
    [choice] = answered(HERMES, ask, text[text.index("<") :])["choices"]
    assert choice["message"]["content"] is None


def test_a_reply_with_a_call_that_was_cut_off():
    text = '<tool_call>\n{"name": "weather", "arguments": {"ci'
    [choice] = answered(HERMES, read(tools=[WEATHER]), text, "length")["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"ci'


def test_a_reply_with_thoughts():
    text = "<think>\nwell\n</think>\n\nyes"
    body = answered(QWEN3, read(QWEN3), text)
    message = body["choices"][0]["message"]
    assert (message["reasoning"], message["reasoning_content"], message["content"]) == ("well", "well", "yes")
    thoughts = QWEN3.text_tokenizer.encode("<think>\nwell\n</think>", add_special_tokens=False)
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": len(thoughts)}
    hidden = answered(QWEN3, read(QWEN3, include_reasoning=False), text)
    assert hidden["choices"][0]["message"]["content"] == "yes"
    assert hidden["choices"][0]["message"]["reasoning"] is None
    assert hidden["usage"] == body["usage"]


def test_a_reply_that_is_one_unfinished_thought():
    into = intake(chats.QWEN3_THINKING)
    body = answered(into, read(into), "well", "length")
    message = body["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("well", None)
    assert (
        body["usage"]["completion_tokens_details"]["reasoning_tokens"] == body["usage"]["completion_tokens"]
    )


def test_a_reply_of_a_model_that_does_not_think():
    body = answered(HERMES, read(), "<think>x</think>y")  # the closing tag is a special token
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "<think>xy",
        "refusal": None,
    }
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_marks_that_are_special_tokens_reach_the_reader():
    ask = read(MISTRAL, tools=[NOW])
    [choice] = answered(MISTRAL, ask, '[TOOL_CALLS] [{"name": "now"}]<|im_start|>')["choices"]
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
    assert choice["message"]["content"] is None  # other special tokens stay hidden
    [choice] = answered(MISTRAL, read(MISTRAL), "[TOOL_CALLS]x")["choices"]
    assert choice["message"]["content"] == "x"
    message = answered(QWEN3, read(QWEN3), "<think>a</think>b")["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("a", "b")


# -- grammars

FULL = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "unit": {"type": "string", "enum": ["C", 'F"x']},
        "box": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}
SOME = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}},
    "additionalProperties": False,
}
CALLABLE = (Tool("weather", FULL), Tool("some", SOME), Tool("now"))


def walk(matcher: Any, seed: int, most: int = 600) -> str | None:
    """A random text that a grammar allows, over bytes, with a taste for what ends things; None if it went on."""
    llguidance = pytest.importorskip("llguidance")
    ends, chance = llguidance.LLTokenizer("byte").eos_token, random.Random(seed)
    out = bytearray()
    for _ in range(most):
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        ids = [int(i) for i in np.flatnonzero(bits)]
        if ends in ids:
            return out.decode()
        liked = [i for i in ids if i in b'"}])</\n'] or ids
        token = chance.choice(liked if chance.random() < 0.6 else ids)
        assert matcher.consume_token(token), matcher.get_error()
        out.append(token)
    return None


def rules(voice: Voice, otherwise: Any = None) -> str:
    asked = voice.constraint(HERMES.text_tokenizer, otherwise)
    assert asked is not None
    assert asked.grammar is not None
    return asked.grammar


@pytest.mark.parametrize("format", tool_formats(), ids=lambda format: format.name)
def test_what_a_grammar_allows_is_read_as_calls(format: Any):
    llguidance = pytest.importorskip("llguidance")
    tokenizer = HERMES.text_tokenizer
    plain = Voice(formats=Formats(format), tools=CALLABLE, forced=True)
    source = rules(plain)
    for text in format.tokens:  # these bytes have no such tokens
        source = source.replace(f"<[{tokenizer.piece_to_id(text)}]>", json.dumps(text))
    bytes_only = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(bytes_only, llguidance.LLMatcher.grammar_from_lark(source))
    assert not matcher.get_error()
    texts = [text for seed in range(25) if (text := walk(matcher.deep_copy(), seed)) is not None]
    assert texts
    for text in texts:
        speech = plain.speech()
        assert speech is not None
        said = speech.whole(text)
        assert said.content is None, text
        assert said.calls
        for call in said.calls:
            tool = next(tool for tool in CALLABLE if tool.name == call.name)
            schema = {"type": "object"} | dict(tool.parameters)
            checker = llguidance.LLMatcher(bytes_only, llguidance.LLMatcher.grammar_from_json_schema(schema))
            given = json.dumps(json.loads(call.arguments), ensure_ascii=False)
            assert checker.try_consume_tokens(bytes_only.tokenize_str(given)) == len(given.encode()), text
            assert checker.is_accepting()


def accepts(source: str, text: str) -> bool:
    llguidance = pytest.importorskip("llguidance")
    bytes_only = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(bytes_only, llguidance.LLMatcher.grammar_from_lark(source))
    assert not matcher.get_error()
    return matcher.try_consume_tokens(bytes_only.tokenize_str(text)) == len(text) and matcher.is_accepting()


def test_one_call_only():
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    hermes = Formats(HERMES.text_tokenizer.formats.tools)
    for many in (True, False):
        source = rules(Voice(formats=hermes, tools=(Tool("now"),), forced=True, many=many))
        assert accepts(source, call)
        assert accepts(source, f"{call}\n{call}") == many


def test_a_call_or_an_answer_of_a_form():
    free = Voice(formats=Formats(HERMES.text_tokenizer.formats.tools), tools=CALLABLE)
    asked = StructuredOutputsParams(json={"type": "object", "properties": {"a::=": {"type": "integer"}}})
    source = rules(free, asked)
    assert "::=" not in source
    assert accepts(source, '{"a::=": 1}')
    assert accepts(source, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
    assert not accepts(source, "neither")
    digits = StructuredOutputsParams(regex="[0-9]+")
    assert free.constraint(HERMES.text_tokenizer, digits) == digits
    assert Voice().constraint(HERMES.text_tokenizer, asked) == asked
    assert Voice().constraint(HERMES.text_tokenizer) is None


def test_the_schema_of_a_strict_tool_is_followed_once_its_call_has_begun():
    llguidance = pytest.importorskip("llguidance")
    tokenizer = Tokenizer.from_gguf(byte_level_metadata())
    tokenizer.backend.add_tokens(
        [AddedToken(text, normalized=False) for text in ("<tool_call>", "</tool_call>")]
    )
    hermes = Formats(HERMES.text_tokenizer.formats.tools)
    strict, loose = Tool("strict", SOME, True), Tool("loose", SOME)
    asked = Voice(formats=hermes, tools=(strict, loose)).constraint(tokenizer)
    assert asked is not None
    lltokenizer = llguidance.LLTokenizer(tokenizer.backend.to_str(), n_vocab=tokenizer.vocab_size)

    def allowed(text: str) -> bool:
        matcher = llguidance.LLMatcher(lltokenizer, llguidance.LLMatcher.grammar_from_lark(asked.grammar))
        assert not matcher.get_error()
        ids = tokenizer.encode(text, add_special_tokens=False)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    call = '<tool_call>\n{"name": "%s", "arguments": {%s}}\n</tool_call>'
    assert allowed("free text, with { and }")
    assert allowed("text " + call % ("strict", '"a": true') + "\n" + call % ("loose", '"z": 1') + " more")
    assert not allowed(call % ("strict", '"z": 1'))
    assert not allowed(call % ("nobody", ""))
    # nobody is strict, or the tag is no token: nothing is enforced
    assert Voice(formats=hermes, tools=(loose,)).constraint(tokenizer) is None
    assert Voice(formats=hermes, tools=(strict,)).constraint(HERMES.text_tokenizer) is None


def test_arguments_that_refer_to_definitions():
    schema = {
        "type": "object",
        "properties": {"size": {"$ref": "#/$defs/size"}},
        "required": ["size"],
        "$defs": {"size": {"type": "integer", "minimum": 1, "maximum": 3}},
    }
    texts = {
        "pythonic": "[fit(size=%s)]",
        "qwen_coder": "<tool_call>\n<function=fit>\n<parameter=size>\n%s\n</parameter>\n</function>\n</tool_call>",
        "hermes": '<tool_call>\n{"name": "fit", "arguments": {"size": %s}}\n</tool_call>',
    }
    for format in tool_formats():
        if format.name in texts:
            source = rules(Voice(formats=Formats(format), tools=(Tool("fit", schema),), forced=True))
            assert accepts(source, texts[format.name] % 2)
            assert not accepts(source, texts[format.name] % 4)


def test_schemas_out_of_bounds_are_refused():
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(60):  # two levels each
        deep = {"type": "object", "properties": {"a": deep}}
    with pytest.raises(Refused, match="tool 'deep'") as caught:
        read(
            tools=[{"type": "function", "function": {"name": "deep", "parameters": deep}}],
            tool_choice="required",
        )
    assert caught.value.param == "tools"


def test_tags_that_are_tokens_in_grammars():
    tokenizer = HERMES.text_tokenizer
    id = tokenizer.piece_to_id("[TOOL_CALLS]")
    assert spelled('[TOOL_CALLS] [é"', ("[TOOL_CALLS]", "[ARGS_NOT]"), tokenizer) == f'<[{id}]> " [é\\""'
    assert spelled("<tool_call>", ("<tool_call>",), tokenizer) == '"<tool_call>"'
