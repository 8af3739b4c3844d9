"""Values without quotes, or in Python's spelling."""

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from headrace.text.tools._literal import LONGEST, from_python, from_text, types

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_python_and_json_are_both_understood(value: Any):
    assert json.loads(from_python(repr(value))) == value
    assert json.loads(from_python(json.dumps(value))) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(1, 2)", [1, 2]),
        ("{1, 2}", "{1, 2}"),
        ("b'x'", "b'x'"),
        ("1j", "1j"),
        ("NaN", "NaN"),
        ("1e999", "1e999"),
        ("f(x)", "f(x)"),
        ("'\\ud800'", "\ud800"),
        ("[" * 5000, "[" * 5000),
        ("'" + "x" * LONGEST + "'", "'" + "x" * LONGEST + "'"),
    ],
)
def test_what_json_does_not_know_is_text(text: str, value: Any):
    made = from_python(text)
    made.encode()
    assert json.loads(made) == value


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("3", {"type": "integer"}, 3),
        ("3.0", {"type": "integer"}, 3),
        ("3", {"type": "number"}, 3),
        ("3", {"type": "string"}, "3"),
        ("3", {}, "3"),
        ("3", None, "3"),
        (" 3 ", {"type": ["integer", "null"]}, 3),
        ("null", {"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        ("null", {"type": "string"}, "null"),
        ("True", {"type": "boolean"}, True),
        ("yes", {"type": "boolean"}, "yes"),
        ("{'a': 1}", {"type": "object"}, {"a": 1}),
        ('{"a": 1}', {"$ref": "#/$defs/x"}, {"a": 1}),
        ("word", {"$ref": "#/$defs/x"}, "word"),
        ("2", {"enum": [1, 2]}, 2),
        ("2", {"enum": ["1", "2"]}, "2"),
        ("true", {"const": True}, True),
    ],
)
def test_the_schema_says_what_is_meant(text: str, schema: object, value: Any):
    found = json.loads(from_text(text, schema))
    assert (found, type(found)) == (value, type(value))


def test_types():
    assert types({"oneOf": [{"type": "integer"}, {"$ref": "#/x"}]}) == frozenset()
    assert types({"description": "something"}) == {"string"}
