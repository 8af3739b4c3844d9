"""What users may ask for, and what is refused before llguidance sees it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.base.errors import Refused
from headrace.engine import structured
from headrace.engine.request import SamplingParams
from headrace.engine.structured import GuidedDecodingParams, StructuredOutputsParams, Thinking, to_grammar

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


def source(**wanted: Any) -> Any:
    made = to_grammar(StructuredOutputsParams(**wanted), lambda text: text == "<call>")
    (only,) = json.loads(made.source)["grammars"]
    return only.get("lark_grammar") or only["json_schema"]


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "has none"),
    ({"json": SCHEMA, "regex": "a"}, "json and regex"),
    ({"json_object": False}, "has none"),
    ({"json": 5}, "of type int"),
    ({"json": False}, "of type bool"),
    ({"json": "{"}, "no JSON"),
    ({"json": "[1]"}, "of type list"),
    ({"json": {"const": float("nan")}}, "no JSON"),
    ({"json": {"const": {1, 2}}}, "no JSON"),
    ({"json": {"const": "\ud800"}}, "surrogate"),
    ({"json": deep(200)}, "100 levels"),
    ({"json": "[" * 200_000}, "100 levels"),
    ({"json": {"enum": ["x" * 300_000]}}, "characters"),
    ({"json": {"multipleOf": 99_999_937}}, "multipleOf"),
    ({"json": {**SCHEMA, "x-guidance": {"lenient": True}}}, "x-guidance"),
    ({"regex": ["a"]}, "of type list"),
    ({"regex": "a" * 20_000}, "characters"),
    ({"choice": []}, "no list"),
    ({"choice": "abc"}, "no list"),
    ({"choice": ["a", 5]}, "of type int"),
    ({"choice": ["a", ""]}, "empty"),
    ({"choice": [str(n) for n in range(20_000)]}, "20000 choices"),
    ({"choice": ["x" * 200_000, "y" * 200_000]}, "too long"),
    ({"grammar": "  "}, "empty"),
    ({"grammar": 5}, "of type int"),
    ({"structural_tag": {"format": {}}}, "unknown form"),
    ({"structural_tag": "{}"}, "unknown form"),
    ({"structural_tag": {"structures": [], "triggers": ["<"]}}, "without structures"),
    ({"structural_tag": {"structures": [{"schema": {}}], "triggers": ["<"]}}, "without begin"),
    (
        {"structural_tag": {"structures": [{"begin": "(", "end": ")", "schema": {}}], "triggers": ["<"]}},
        "triggers",
    ),
    ({"json": SCHEMA, "disable_any_whitespace": 1}, "true or false"),
    ({"json": SCHEMA, "whitespace_pattern": 1}, "of type int"),
    ({"json": SCHEMA, "whitespace_pattern": False}, "of type bool"),
    ({"json_object": "no"}, "true or false"),
    ({"json": SCHEMA, "whitespace_pattern": " ", "disable_any_whitespace": True}, "one of them"),
]


@pytest.mark.parametrize(("wanted", "reason"), REFUSED, ids=[str(wanted)[:40] for wanted, _ in REFUSED])
def test_what_is_refused(wanted: dict[str, Any], reason: str):
    with pytest.raises(Refused, match=reason) as caught:
        source(**wanted)
    assert caught.value.param == "structured_outputs"


def test_a_schema_keeps_its_order_and_gets_bounded_white_space():
    schema = {"properties": {"b": {}, "a": {}}, "type": "object"}
    made = source(json=schema)
    assert list(made["properties"]) == ["b", "a"]
    assert made["x-guidance"] == {"whitespace_pattern": structured.WHITESPACE}
    assert source(json=json.dumps(schema)) == made
    assert source(json=schema, whitespace_pattern=" ")["x-guidance"] == {"whitespace_pattern": " "}
    assert source(json=schema, disable_any_whitespace=True)["x-guidance"] == {"whitespace_flexible": False}
    assert source(json=True) == {"x-guidance": made["x-guidance"]}
    assert source(json_object=True)["type"] == "object"
    assert "x-guidance" not in schema


def test_formats_that_nobody_enforces_are_remarks():
    schema = {
        "properties": {"format": {"type": "string", "format": "int32"}, "d": {"format": "date"}},
        "anyOf": [{"format": "password"}],
        "items": [{"format": "byte"}],
        "default": {"format": "int32"},
    }
    made = source(json=schema)
    assert made["properties"] == {"format": {"type": "string"}, "d": {"format": "date"}}
    assert made["anyOf"] == made["items"] == [{}]
    assert made["default"] == {"format": "int32"}


def test_objects_are_closed_where_that_is_asked_for():
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "object"},
            "b": {"properties": {}, "additionalProperties": {"type": "object"}},
            "c": {"type": "object", "patternProperties": {"x": {}}},
        },
        "$defs": {"d": {"type": "object"}},
    }
    made = source(json=schema, disable_additional_properties=True)
    assert made["additionalProperties"] is False
    assert made["properties"]["a"]["additionalProperties"] is False
    assert made["properties"]["b"]["additionalProperties"]["additionalProperties"] is False
    assert "additionalProperties" not in made["properties"]["c"]
    assert made["$defs"]["d"]["additionalProperties"] is False
    assert "additionalProperties" not in source(json=schema)


@given(st.text())
def test_a_regex_ends_only_at_its_slash(regex: str):
    text = source(regex=regex.encode("utf-8", "replace").decode())
    body = text.removeprefix("start: /").removesuffix("/")
    assert "\n" not in body
    bare = body.replace("\\\\", "").replace("\\/", "")
    assert "/" not in bare


def test_choices_and_grammars_are_lark():
    assert source(choice=["a", 'b"', "a", "\n"]) == 'start: CHOICE\nCHOICE: "a" | "b\\"" | "\\n"'
    assert source(grammar="start: X") == "start: X"


def test_tags_of_special_tokens_stand_apart():
    form = {
        "structures": [
            {"begin": "<call>(", "schema": {"const": 1}, "end": ""},
            {"begin": "<f=1>", "schema": {}, "end": "</f>"},
        ],
        "triggers": ["<call>", "<f="],
    }
    rules = source(structural_tag=form).splitlines()
    assert rules[0] == "start: (tag_0 | tag_1)* rest"
    assert any(rule.startswith('tag_0: TEXT <call> "(" %json {') for rule in rules)
    assert 'tag_1_open[lazy]: TEXT "<f="' in rules
    assert any(
        rule.startswith('tag_1: tag_1_open "1>" %json {') and rule.endswith('"</f>"') for rule in rules
    )


def test_thoughts_come_along():
    wanted = StructuredOutputsParams(regex="a", thinking=Thinking("<t>", "</t>", True))
    assert to_grammar(wanted, lambda text: False).thinking == Thinking("<t>", "</t>", True)


# -- sampling params


def test_sampling_params_take_it_in_any_shape():
    wanted = StructuredOutputsParams(regex="a+")
    assert SamplingParams(structured_outputs=wanted).structured_outputs == wanted
    assert SamplingParams(structured_outputs={"regex": "a+"}).structured_outputs == wanted  # pyright: ignore[reportArgumentType]
    assert SamplingParams(guided_decoding=GuidedDecodingParams(regex="a+")).structured_outputs == wanted
    for wrong in ("a+", {"regexp": "a"}, {"regex": "a", "choice": ["a"]}):
        with pytest.raises(Refused, match="structured_outputs"):
            SamplingParams(structured_outputs=wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(Refused, match="older name"):
        SamplingParams(structured_outputs=wanted, guided_decoding=wanted)


def test_it_survives_the_wire():
    params = SamplingParams(structured_outputs=StructuredOutputsParams(json=SCHEMA))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


# -- bodies


def test_bodies_without_a_constraint():
    for body in (
        {},
        {"response_format": None},
        {"response_format": {"type": "text"}},
        {"guided_json_object": False},
    ):
        assert structured.read(body) is None


def test_bodies_with_one():
    form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}
    wanted = StructuredOutputsParams(json=SCHEMA)
    whole = StructuredOutputsParams(json_object=True)
    tag = {"type": "structural_tag", "structures": [], "triggers": []}
    assert structured.read({"response_format": form}) == ("response_format", wanted)
    old = {"type": "json_object", "schema": SCHEMA}
    assert structured.read({"response_format": old}) == ("response_format", wanted)
    assert structured.read({"response_format": {"type": "json_object"}}) == ("response_format", whole)
    assert structured.read({"response_format": tag}) == (
        "response_format",
        StructuredOutputsParams(structural_tag=tag),
    )
    assert structured.read({"guided_json": SCHEMA}) == ("guided_json", wanted)
    assert structured.read({"structured_outputs": {"json": SCHEMA, "regex": None}}) == (
        "structured_outputs",
        wanted,
    )
    spaced = structured.read({"guided_json": SCHEMA, "guided_whitespace_pattern": " "})
    assert spaced is not None
    assert spaced[1].whitespace_pattern == " "


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"structured_outputs": []}, "structured_outputs"),
        ({"structured_outputs": {"thinking": ["a", "b", True]}}, "structured_outputs"),
        ({"guided_regex": 5, "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_choice": ["a"], "response_format": {"type": "json_object"}}, "guided_choice"),
        ({"guided_choice": ["a"], "guided_whitespace_pattern": 5}, "guided_choice"),
    ],
)
def test_bodies_that_are_refused(body: dict[str, Any], param: str):
    with pytest.raises(Refused) as caught:
        structured.read(body)
    assert caught.value.param == param
    assert param in caught.value.message
