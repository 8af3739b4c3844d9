"""Templates against what transformers renders, and messages good and bad."""

# ruff: noqa: E501 -- templates are easier to read on one line

import json
from typing import Any

import pytest

from headrace.base.errors import Refused
from headrace.text.template import ChatTemplate

CHATML = """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}{% set system_message = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' ~ date_string ~ '\\n' ~ system_message ~ '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

GEMMA3 = """{{ bos_token }}{%- for message in messages -%}
{{ '<start_of_turn>' + message.role + '\\n' }}
{%- if message['content'] is string -%}{{ message['content'] | trim }}
{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}
{%- if item['type'] == 'text' -%}{{ item['text'] | trim }}|{%- endif -%}{%- endfor -%}{%- endif -%}
{{ '<end_of_turn>\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

TOOLS = """{%- macro shown(call) -%}<call>{{ call.name }} {{ call.arguments | tojson }}</call>{%- endmacro -%}
{%- if tools %}# Tools\\n{% for tool in tools %}{{ tool | tojson }}\\n{% endfor %}{% endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}
    {%- if message.role == 'tool' and (loop.first or messages[loop.index0 - 1].role != 'tool') %}[tools]{% endif %}
    {{- '<' ~ message.role ~ '>' }}{% generation %}{{ message.content }}{% endgeneration %}
    {%- for call in message.tool_calls or [] %}{{ shown(call.function) }}{% endfor %}
    {%- if loop.index0 == ns.last %}[end]{% break %}{% endif %}
{%- endfor %}
{%- for d in documents or [] %}{{ loop.index }}/{{ loop.length }} {{ d.title | default('untitled') | upper }};{% endfor %}
{%- if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"""

TURNS = [
    {"role": "user", "content": " Hi, what is a headrace? "},
    {"role": "assistant", "content": 'A channel; naïve 😀 <b>"q"</b>'},
    {"role": "user", "content": "More.\n"},
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "é": "<>&'"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": [1, None, "é"]}}}
SYSTEM = [{"role": "system", "content": "Short."}]
TOOL_TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "go"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "42"},
]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}]


SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def theirs(source: str, messages: Any, **more: Any) -> str:
    """What transformers renders."""
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    rendered, _ = utilities.render_jinja_template([messages], chat_template=source, **SPECIAL, **more)
    return rendered[0]


def ours(source: str, messages: Any, **more: Any) -> str:
    return ChatTemplate(source, SPECIAL).render(messages, **more)


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize(
    ("source", "messages", "more"),
    [
        (CHATML, TURNS, {}),
        (CHATML, SYSTEM + TURNS, {}),
        (LLAMA3, SYSTEM + TURNS, {}),
        (LLAMA3, TURNS, {"date_string": "today"}),
        (GEMMA, TURNS, {}),
        (GEMMA3, TURNS, {}),
        (GEMMA3, PARTS, {}),
        (TOOLS, TOOL_TURNS, {"tools": [TOOL]}),
        (TOOLS, TURNS, {"documents": [{"title": "x"}, {"text": "y"}], "enable_thinking": False}),
    ],
)
def test_rendering_equals_transformers(
    source: str, messages: Any, more: dict[str, Any], prompt: bool
) -> None:
    expected = theirs(source, messages, add_generation_prompt=prompt, **more)
    assert ours(source, messages, add_generation_prompt=prompt, **more) == expected


@pytest.mark.parametrize("source", [CHATML, LLAMA3, GEMMA3])
@pytest.mark.parametrize("end", ["The channel", "The channel ", "The\n\n", "the same the same"])
def test_continuing_equals_transformers(source: str, end: str) -> None:
    messages = [*TURNS, {"role": "assistant", "content": end}]
    expected = theirs(source, messages, continue_final_message=True)
    assert ours(source, messages, continue_final_message=True) == expected


def test_continuing_the_last_part() -> None:
    assert ours(GEMMA3, PARTS, continue_final_message=True) == theirs(
        GEMMA3, PARTS, continue_final_message=True
    )


def test_the_generation_prompt_is_the_default() -> None:
    assert ours(CHATML, TURNS) == ours(CHATML, TURNS, add_generation_prompt=True)


def test_the_time_is_there_in_short_forms_only() -> None:
    assert len(ours("{{ strftime_now('%Y-%m-%d') }}", TURNS)) == 10
    with pytest.raises(Refused, match="date"):
        ours("{{ strftime_now('%99999999d') }}", TURNS)


def test_json_is_as_in_transformers() -> None:
    source = "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ {'b': 'é', 'a': [1.5, true]} | tojson(true, sort_keys=true) }}"
    assert ours(source, TURNS) == theirs(source, TURNS)


# -- messages -----------------------------------------------------------------------------------------


def test_parts_become_a_string_where_the_template_cannot_walk_through_them() -> None:
    assert ours("{{ messages[0]['content'] }}", PARTS) == "a \nb"
    kept = ours(
        "{% for m in messages %}{% set c = m.content %}{% for p in c %}{{ p.text }}|{% endfor %}{% endfor %}",
        PARTS,
    )
    assert kept == "a |b|"


@pytest.mark.parametrize(
    ("source", "takes"),
    [
        (GEMMA3, True),
        (CHATML, False),
        (LLAMA3, False),
        ("{% for p in messages[0]['content'] | list %}{% endfor %}", True),
        ("{% for p in messages[0].content[1:] %}{% endfor %}", True),
        ("{% macro show(content) %}{% for p in content %}{% endfor %}{% endmacro %}", True),
        ("{% for c in messages[0].tool_calls %}{{ c.content }}{% endfor %}", False),
    ],
)
def test_whether_a_template_takes_parts(source: str, takes: bool) -> None:
    assert ChatTemplate(source).takes_parts is takes


def test_arguments_of_calls_are_objects_also_when_they_come_as_json() -> None:
    as_text = json.loads(json.dumps(TOOL_TURNS))
    as_text[1]["tool_calls"][0]["function"]["arguments"] = json.dumps(CALL["function"]["arguments"])
    assert ours(TOOLS, as_text) == ours(TOOLS, TOOL_TURNS)
    as_text[1]["tool_calls"][0]["function"]["arguments"] = ""
    assert "<call>f {}</call>" in ours(TOOLS, as_text)
    as_text[1]["tool_calls"][0]["function"]["arguments"] = "{oops"
    with pytest.raises(Refused, match=r"messages\[1\]\.tool_calls\[0\]\.function\.arguments"):
        ours(TOOLS, as_text)


def test_content_may_be_missing_beside_tool_calls() -> None:
    messages = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert ours("{{ messages[0].content }}|", messages) == "|"
    assert ours("{% if messages[0].content is none %}none{% endif %}", messages) == "none"


@pytest.mark.parametrize("name", ["reasoning", "thinking", "reasoning_content"])
def test_reasoning_is_found_under_every_name(name: str) -> None:
    messages = [{"role": "assistant", "content": "x", name: "because"}]
    assert (
        ours("{{ messages[0].reasoning_content }} {{ messages[0].thinking }}", messages) == "because because"
    )


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([], "messages must be a list that is not empty"),
        (None, "messages must be a list"),
        ("hi", "messages must be a list"),
        ([3], r"messages\[0\] must be an object"),
        ([{"content": "x"}], r"messages\[0\]\.role must be a string"),
        ([{"role": "", "content": "x"}], r"messages\[0\]\.role"),
        ([{"role": 1, "content": "x"}], r"messages\[0\]\.role"),
        ([*TURNS, {"role": "user"}], r"messages\[3\]\.content is missing"),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content is missing"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content must be a string or a list"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\] is of type 'image_url'"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]"),
        ([{"role": "user", "content": [7]}], r"content\[0\] is of type 'int'"),
        ([{"role": "user", "content": "x", "tool_calls": "y"}], "must be a list"),
        (
            [{"role": "user", "content": "x", "tool_calls": [1]}],
            r"messages\[0\]\.tool_calls\[0\] must be an object",
        ),
        ([{"role": "user", "content": "x", "y": object()}], "no JSON value"),
        ([{"role": "user", "content": "x", 1: 2}], "key that is no string"),
    ],
)
def test_messages_that_are_none_are_refused_by_name(messages: Any, what: str) -> None:
    with pytest.raises(Refused, match=what) as caught:
        ours(CHATML, messages)
    assert caught.value.param == "messages"


def test_text_parts_may_be_plain_strings() -> None:
    assert ours("{{ messages[0].content }}", [{"role": "user", "content": ["a", "b"]}]) == "a\nb"


def test_nesting_has_an_end() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Refused, match="nested too deeply"):
        ours(CHATML, [{"role": "user", "content": "x", "extra": deep}])


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image_url"}, "is of type 'image_url'; only text"),
        ({"type": "text"}, r"content\[0\]\.text must be a string, not NoneType"),
    ],
)
def test_what_is_wrong_with_a_part_is_said(part: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        ours(CHATML, [{"role": "user", "content": [part]}])


def test_the_caller_s_messages_stay_as_they_were() -> None:
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "x"}], "reasoning": "y"}]
    before = json.dumps(messages)
    ours(GEMMA3, messages, continue_final_message=True)
    assert json.dumps(messages) == before


# -- options ------------------------------------------------------------------------------------------


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(Refused, match="exclude"):
        ours(CHATML, TURNS, add_generation_prompt=True, continue_final_message=True)


def test_a_message_that_the_template_drops_cannot_be_continued() -> None:
    with pytest.raises(Refused, match="cannot be continued"):
        ours("{{ messages[0].content }}", TURNS, continue_final_message=True)
    empty = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    with pytest.raises(Refused, match="no content to continue"):
        ours("{{ messages[0].content is none }}", empty, continue_final_message=True)


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ("x", r"messages\[0\]\.tool_calls must be a list"),
        ([{"id": "1", "type": "custom", "custom": {"name": "f"}}], r"tool_calls\[0\] names no function"),
        ([{"function": {"arguments": "{}"}}], r"tool_calls\[0\] names no function"),
    ],
)
def test_what_is_wrong_with_a_call_is_said(calls: Any, said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        ours(CHATML, [{"role": "assistant", "content": None, "tool_calls": calls}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("more", [{"tools": [TOOL]}, {"documents": [{"title": "x"}]}])
def test_what_the_template_would_ignore_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="has no place for") as caught:
        ours(CHATML, TURNS, **more)
    assert caught.value.param in more
    assert ours(CHATML, TURNS, **dict.fromkeys(more)) == ours(CHATML, TURNS)


@pytest.mark.parametrize(
    "name", ["tokenize", "bos_token", "raise_exception", "_x", "chat_template", "namespace"]
)
def test_names_that_a_request_may_not_set(name: str) -> None:
    with pytest.raises(Refused, match=f"may not set '{name}'"):
        ours(CHATML, TURNS, **{name: True})
    with pytest.raises(Refused, match=f"may not set '{name}'") as caught:
        ours(CHATML, TURNS, chat_template_kwargs={name: True})
    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(
    "name", ["messages", "tools", "documents", "add_generation_prompt", "continue_final_message"]
)
def test_strangers_may_not_set_the_arguments_themselves(name: str) -> None:
    with pytest.raises(Refused, match=f"may not set '{name}'"):
        ours(CHATML, TURNS, chat_template_kwargs={name: True})


def test_other_names_reach_the_template() -> None:
    assert ours("{{ a }}{{ b }}", TURNS, a=1, chat_template_kwargs={"b": "two"}) == "1two"
    for bad in ({"other": object()}, [1]):
        with pytest.raises(Refused, match=r"no JSON value|must be an object"):
            ours(CHATML, TURNS, chat_template_kwargs=bad)


# -- templates that fail ------------------------------------------------------------------------------


def test_the_template_s_own_words_reach_the_caller() -> None:
    with pytest.raises(Refused, match="System role not supported") as caught:
        ours(GEMMA, SYSTEM)
    assert caught.value.param == "messages"
    with pytest.raises(Refused, match="'nothing' is undefined"):
        ours("{{ nothing.at.all }}", TURNS)
    with pytest.raises(Refused, match="TypeError"):
        ours("{{ messages[0].content + 1 }}", TURNS)


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ x", "{% if %}", "{{ x | nothing }}", "{% nothing %}", "{% endfor %}"]
)
def test_a_template_that_does_not_parse_is_refused_with_its_line(source: str) -> None:
    with pytest.raises(Refused, match="does not parse: line 2") as caught:
        ChatTemplate("\n" + source)
    assert "--chat-template" in caught.value.hint
