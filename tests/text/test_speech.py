"""Thoughts, content and calls, however the text is cut."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.text.formats import tool_formats
from headrace.text.parts import CallArguments, CallStart, Content, Said, Thought, Tool, joined
from headrace.text.reasoning.think import Think
from headrace.text.speech import Speech
from tests.text.cutting import pieces

THINK = Think("<think>", "</think>")
FORMATS = {format.name: format for format in tool_formats()}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "near": {"type": ["string", "null"]},
        "box": {"type": "object"},
        "tags": {"type": "array"},
    },
}
TOOLS = (Tool("weather", SCHEMA), Tool("now", SCHEMA))


def speech(name=None, **more):
    count = iter(range(1000))
    more = {"tools": TOOLS, "new_id": lambda: f"id{next(count)}"} | more
    return Speech(FORMATS[name] if name else None, **more)


def in_pieces(reader, text, cuts):
    parts = [part for piece in pieces(text, cuts) for part in reader.push(piece)]
    return [*parts, *reader.finish()]


def written(name, calls):
    """Calls as a model of this family writes them."""
    dump = json.dumps
    objects = [f'{{"name": "{n}", "arguments": {dump(a, ensure_ascii=False)}}}' for n, a in calls]
    match name:
        case "hermes":
            return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in objects)
        case "llama":
            return "; ".join(text.replace('"arguments"', '"parameters"', 1) for text in objects)
        case "mistral":
            return f"[TOOL_CALLS] [{', '.join(objects)}]"
        case "mistral_turns":
            return "".join(f"[TOOL_CALLS]{n}[ARGS]{dump(a)}" for n, a in calls)
        case "pythonic":
            texts = [f"{n}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for n, a in calls]
            return f"[{', '.join(texts)}]"
        case _:
            return "\n".join(coder_call(*call) for call in calls)


def coder_call(name, arguments):
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in arguments.items()}
    lines = [f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in texts.items()]
    return f"<tool_call>\n<function={name}>\n{''.join(lines)}</function>\n</tool_call>"


# No lone surrogates: the tokenizer's text has none.
MARKS = [
    '"',
    "\\",
    "{",
    '}"]',
    "</tool_call>x",
    "\n",
    "[TOOL_CALLS]",
    "<think>",
    "'",
    "a=1)",
    "é🎉",
    "\u2028",
    "; {",
]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(MARKS)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
arguments = st.fixed_dictionaries(
    {},
    optional={
        "city": texts.filter(lambda text: "parameter" not in text and "function" not in text),
        "days": st.integers(-5, 5),
        "near": st.none() | st.sampled_from(["here", "0", "null hypothesis"]),
        "box": st.dictionaries(texts, values, max_size=3),
        "tags": st.lists(values, max_size=3),
    },
)
calls = st.lists(st.tuples(st.sampled_from(["weather", "now"]), arguments), min_size=1, max_size=3)
cuts = st.lists(st.integers(0, 400), max_size=40)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=100)
@given(calls=calls, cuts=cuts, thought=st.none() | st.just("so\n\nit is"))
def test_any_arguments_come_out_as_they_went_in(name, calls, cuts, thought):
    text = written(name, calls)
    if thought:
        text = f"<think>\n{thought}\n</think>\n\n{text}"
    said = joined(in_pieces(speech(name, thinking=THINK), text, cuts))
    assert [(call.name, json.loads(call.arguments)) for call in said.calls] == calls
    assert said.content is None
    assert said.thought == thought
    assert said == speech(name, thinking=THINK).whole(text)


SCRAPS = [
    "<tool_call>", "</tool_call>", "<tool_", "<function=", "weather", ">", "</function>", "<parameter=",
    "city", "</parameter>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[", "]", "{", "}", "(", ")", ":", ",",
    "=", ";", '"name"', '"arguments"', '"parameters"', '"weather"', '"city"', '"x"', "\\", '"', "'", "1",
    "-0", "true", "None", "<|python_tag|>", "<think>", "</think>", "now", "nothing", "é", "\\u00e9",
    "\\u12", "\\d", "[weather(", "[now()", '{"name":', '{"name":"weather","arguments":{',
    '{"name":"now","parameters":{}}', "\n", " ", "\t", "\x01",
]  # fmt: skip

# Pieces of markers and of JSON, so that what looks like a call and is none comes often.
scraps = st.lists(st.sampled_from(SCRAPS), max_size=25).map("".join)


@pytest.mark.parametrize("name", [None, *FORMATS])
@settings(max_examples=200)
@given(text=scraps, cuts=cuts, begun=st.booleans(), many=st.booleans())
def test_the_same_parts_however_it_is_cut(name, text, cuts, begun, many):
    given = {"thinking": THINK, "begun": begun, "many": many}
    whole = joined([*(reader := speech(name, **given)).push(text), *reader.finish()])
    cut = in_pieces(again := speech(name, **given), text, cuts)
    letters = in_pieces(third := speech(name, **given), text, range(len(text)))
    assert joined(cut) == joined(letters) == whole
    assert again.thought_end == third.thought_end == reader.thought_end
    assert [part.number for part in cut if isinstance(part, CallStart)] == list(range(len(whole.calls)))
    assert all(part.text for part in cut if not isinstance(part, CallStart))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=100)
@given(text=st.text(alphabet="ab<>[]{}()\"',:=_ \ntoolcpy", max_size=40))
def test_what_is_no_call_is_content_to_the_letter(name, text):
    assert (speech(name).whole(text).content or "") == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "weather", "argum'),
        ("hermes", "<tool_call>\nI would call it\n</tool_call>"),
        ("hermes", '<tool_call>{"arguments": {"city": "x"}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
        ("hermes", "see <tool_call"),
        ("hermes", "<tool_call>{}</tool_call>"),
        ("hermes", "<tool_call>[]</tool_call>"),
        ("hermes", '<tool_call>{"name" "now"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now"; "arguments": {}}</tool_call>'),
        ("hermes", '{"name": "weather", "arguments": {}}'),
        ("qwen_coder", "<tool_call>\n<function=weather"),
        ("qwen_coder", "in C <function=nobody> is"),
        ("llama", '{"name": "unknown", "parameters": {}}'),
        ("llama", '{"answer": 42}'),
        ("llama", 'as JSON: {"name": "weather", "parameters": {}}'),
        ("llama", "<|python_tag|>print(1)"),
        ("mistral", "[TOOL_CALLS] none"),
        ("mistral", '[TOOL_CALLS] [{"name": "wea'),
        ("mistral_turns", "[TOOL_CALLS]weather and more"),
        ("pythonic", "[1] says so"),
        ("pythonic", "[weather(city=)]"),
        ("pythonic", "[weather(1)]"),
        ("pythonic", "[weather(city=x])]"),
        ("pythonic", "[weather(city=x"),
        ("pythonic", "[unknown(city=1)]"),
        ("pythonic", '[weather(city="x'),
        ("pythonic", "as [weather()]"),
    ],
)
def test_broken_calls_are_content(name, text):
    for cut in range(len(text) + 1):
        assert joined(in_pieces(speech(name), text, [cut])) == Said(text)


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        # brackets that are missing, or too many
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": 1}</tool_call>', '{"a": 1}'),
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": [1, {"b": 2}</tool_call>', '{"a": [1, {"b": 2}]}'),
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": 1}}}\n</tool_call>', '{"a": 1}'),
        # strings as Python or as files have them
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": "1\n\t2"}}</tool_call>', '{"a": "1\\n\\t2"}'),
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": "\\d\\\'"}}</tool_call>', '{"a": "\\\\d\'"}'),
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": [True, None]}}</tool_call>', '{"a": [true, null]}'),
        # arguments as a string, as nothing, before the name, and among other keys
        ("hermes", '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>', '{"a": 1}'),
        ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', "{}"),
        ("hermes", '<tool_call>{"name": "now"}</tool_call>', "{}"),
        ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "now"}</tool_call>', '{"a": 1}'),
        ("llama", '{"type": "function", "name": "now", "parameters": {"a": 1}, "id": 3}', '{"a": 1}'),
        ("llama", '<|python_tag|>{"name": "now", "parameters": {}}', "{}"),
        ("mistral", '[TOOL_CALLS]{"name": "now", "arguments": {"a": 1}}', '{"a": 1}'),
        ("qwen_coder", "<function=now>\n<parameter=a>\n1\n</parameter>\n</function>", '{"a": "1"}'),
        ("qwen_coder", "<tool_call><function=now><parameter=a>1</parameter></function></tool_call>", '{"a": "1"}'),
        (
            "qwen_coder",
            "<tool_call><function=now>\n<parameter=a>\n1\n<parameter=b>\n2\n</function>",
            '{"a": "1", "b": "2"}',
        ),
        (
            "pythonic",
            "[now(a=1, b='x, )', c=[True, {'d': None}], d=lost)]",
            '{"a": 1, "b": "x, )", "c": [true, {"d": null}], "d": "lost"}',
        ),
        ("pythonic", '[now(a="""a "b"\nc""", b=true)]', '{"a": "a \\"b\\"\\nc", "b": true}'),
    ],
)  # fmt: skip
def test_what_models_often_get_wrong_is_mended(name, text, arguments):
    for cut in range(len(text) + 1):
        said = joined(in_pieces(speech(name), text, [cut]))
        assert [(call.name, call.arguments) for call in said.calls] == [("now", arguments)]
        assert said.content is None


def test_brackets_missing_between_calls():
    said = speech("mistral_turns").whole('[TOOL_CALLS]now[ARGS]{"a": {}[TOOL_CALLS]now[ARGS]{}')
    assert [call.arguments for call in said.calls] == ['{"a": {}}', "{}"]


def test_what_is_no_parameter_is_left_out():
    text = "<tool_call><function=now><parameter=a\nb><parameter=c>1</parameter>noise</function></tool_call>"
    assert speech("qwen_coder").whole(text).calls[0].arguments == '{"c": "1"}'


def test_an_id_that_the_model_wrote():
    [call] = speech("mistral_turns").whole("[TOOL_CALLS]now[CALL_ID]abc123def[ARGS]{}").calls
    assert call.id == "abc123def"


def test_a_call_that_breaks_off_keeps_what_there_is():
    text = '<tool_call>{"name": "weather", "arguments": {"city": "Par'
    assert speech("hermes").whole(text).calls[0].arguments == '{"city": "Par'
    assert speech("mistral_turns").whole('[TOOL_CALLS]now[ARGS]{"a": oops').calls[0].arguments == '{"a": '
    text = "<tool_call>\n<function=weather>\n<parameter=city>\nPar"
    assert speech("qwen_coder").whole(text).calls[0].arguments == '{"city": "Par'


def test_a_call_that_goes_wrong_is_not_made_up():
    """It has begun, so a stream cannot take it back: its arguments are what the model wrote, and no JSON."""
    text = '<tool_call>{"name": "now", "arguments": {"a": oops}}</tool_call> sorry'
    said = speech("hermes").whole(text)
    assert said.calls[0].arguments.startswith('{"a": ')
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(said.calls[0].arguments)
    assert said.content == "sorry"


def test_arguments_come_in_pieces():
    parts = in_pieces(
        speech("hermes"), '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}', range(80)
    )
    assert parts[0] == CallStart(0, "id0", "weather")
    assert len(parts) > 10
    assert all(isinstance(part, CallArguments) for part in parts[1:])


def test_text_around_calls():
    call = '<tool_call>\n{"name": "now"}\n</tool_call>'
    assert speech("hermes").whole(f"Let me see.\n\n{call}\n").content == "Let me see."
    assert speech("hermes").whole(f"One.\n{call}\n{call}\nTwo.\n").content == "One.\nTwo.\n"
    assert speech("hermes").whole(" \n ").content == " \n "
    assert speech().whole(f"All {call}").content == f"All {call}"


def test_one_call_where_only_one_is_wanted():
    text = written("hermes", [("now", {}), ("weather", {"city": "x"})])
    assert [call.name for call in speech("hermes", many=False).whole(text).calls] == ["now"]


@pytest.mark.parametrize(
    ("text", "begun", "said", "end"),
    [
        ("<think>\na\n\nb\n</think>\n\nc\n", False, Said("c\n", "a\n\nb"), 21),
        ("a\n</think>\nc", True, Said("c", "a"), 10),
        ("a", True, Said(None, "a"), 1),
        ("\n\na\n", True, Said(None, "a"), 4),
        ("a </think> b", False, Said("a </think> b"), 0),
        (" a <think>b</think>", False, Said(" a <think>b</think>"), 0),
        ("<think>\n\n</think>\n\nc", False, Said("c"), 17),
        ("<think>a</think><think>b</think>", False, Said("<think>b</think>", "a"), 16),
        ("<thin", False, Said("<thin"), 0),
        ("</think>c", True, Said("c"), 8),
    ],
)
def test_thoughts(text, begun, said, end):
    for cut in range(len(text) + 1):
        reader = speech(thinking=THINK, begun=begun)
        assert joined(in_pieces(reader, text, [cut])) == said
        assert reader.thought_end == end


def test_thoughts_are_told_as_they_come_or_not_at_all():
    reader = speech(thinking=THINK)
    assert reader.push("<think>a") == [Thought("a")]
    assert reader.thinking
    assert reader.push("b</think>c") == [Thought("b"), Content("c")]
    assert not reader.thinking
    assert speech(thinking=THINK, thoughts=False).whole("<think>a</think>b") == Said("b")


def test_the_work_per_token_does_not_grow():
    """Counted, not timed: what a reader holds back stays short, whatever came before."""
    reader = speech("hermes", thinking=THINK)
    reader.push('<think>x</think><tool_call>{"name": "now", "arguments": {"a": "')
    for n in range(2000):
        assert reader.push(f"word {n} ")
        assert len(reader._tape._text) < 40
