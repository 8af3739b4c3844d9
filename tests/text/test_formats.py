"""Formats found from chat templates."""

import pytest

from headrace.text.formats import Formats, detect, tool_formats
from headrace.text.template import ChatTemplate
from tests.text import chats


def found(source: str) -> tuple[str | None, str | None]:
    formats = detect(ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}))
    return formats.tools and formats.tools.name, formats.thinking and formats.thinking.opens


@pytest.mark.parametrize("name", chats.FAMILIES)
def test_a_template_says_how_its_model_calls(name: str):
    assert found(chats.FAMILIES[name]) == (name, None)


def test_every_format_has_a_template_here():
    assert {format.name for format in tool_formats()} == set(chats.FAMILIES)


@pytest.mark.parametrize(
    ("source", "formats"),
    [
        (chats.QWEN3, ("hermes", "<think>")),
        (chats.QWEN3_THINKING, ("hermes", "<think>")),
        (chats.R1, (None, "<think>")),
        (chats.PLAIN, (None, None)),
        (chats.STRANGE, (None, None)),
        (chats.PLAIN + "{{ '[THINK]' if false }}", (None, "[THINK]")),
    ],
)
def test_thoughts_and_templates_without_tools(source: str, formats: tuple[str | None, str | None]):
    assert found(source) == formats


@pytest.mark.parametrize("name", sorted(set(chats.FAMILIES) - {"pythonic"}))
def test_a_template_that_cannot_be_asked_is_read(name: str):
    """One that refuses our question still has the marks of its format in its source."""
    marks = {
        "llama": "<|python_tag|>", "hermes": "<tool_call>", "mistral": "[TOOL_CALLS]", "mistral_turns": "[ARGS]",
        "qwen_coder": "<parameter=",
    }  # fmt: skip
    source = "{% if tools %}{{ raise_exception('not now') }}{% endif %}{{ '" + marks[name] + "' if false }}"
    assert found(source) == (name, None)


@pytest.mark.parametrize("written", ['{"probe_key": "another"}', "{oops}"])
def test_a_template_that_writes_something_else(written: str):
    source = chats.HERMES.replace("{{ call.function.arguments | tojson }}", written)
    assert found(source) == (None, None)


def test_the_texts_that_parsers_must_see():
    formats = detect(ChatTemplate(chats.QWEN3))
    assert formats.tokens == {"<tool_call>", "</tool_call>", "<think>", "</think>"}
    assert Formats().tokens == frozenset()
