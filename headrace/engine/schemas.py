"""JSON schemas as users send them: bounded, and prepared for llguidance."""

import json
from typing import Any, cast

from headrace.base.errors import Refused

Schema = dict[str, Any]

MOST_TEXT = 1 << 18
"""Characters of a schema, a grammar, or all choices together."""
DEEPEST = 100
"""Levels of lists and objects in a schema."""
LARGEST_DIVISOR = 100_000
"""Of multipleOf: the automaton has a state for every remainder."""

FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
"""Formats that are enforced. For JSON Schema any other is a remark."""

DRAFTS = ("http://json-schema.org/draft", "https://json-schema.org/draft")

# Where a schema has schemas in it: under these keywords one, a list of them, or an object of them.
_ONE = frozenset((
    "items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties",
))  # fmt: skip
_LIST = frozenset(("allOf", "anyOf", "oneOf", "prefixItems", "items"))
_MAP = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))


def read_schema(given: object, kind: str) -> Schema:
    """A schema as an object. Raises Refused for what is none, or larger or deeper than allowed."""
    if isinstance(given, str):
        given = parsed(given, kind)
    if given is True:
        given = {}
    if not isinstance(given, dict):
        raise refused(f"has {kind} of type {type(given).__name__}; expected a JSON schema")
    schema = cast(Schema, given)
    if _deeper(schema, DEEPEST):
        raise refused(f"has a schema of more than {DEEPEST} levels; expected a flatter one")
    try:
        written = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise refused(f"has a schema that is no JSON: {error}") from error
    text_of(written, "a schema", MOST_TEXT)
    if "x-guidance" in schema:
        raise refused(
            "has a schema with x-guidance; expected whitespace_pattern or the other switches instead"
        )
    return schema


def parsed(text: str, kind: str) -> object:
    """What JSON text of a constraint of this kind says. Raises Refused."""
    text_of(text, kind, MOST_TEXT)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise refused(f"has {kind} of more than {DEEPEST} levels; expected a flatter one") from error
    except ValueError as error:
        raise refused(f"has {kind} that is no JSON: {error}") from error


def _deeper(value: object, levels: int) -> bool:
    """Whether lists and objects lie within each other more than so many times; recursion-free, for any depth."""
    level = [value]
    for _ in range(levels + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (
                cast(Schema, outer).values() if isinstance(outer, dict) else cast(list[object], outer)
            )
        ]
        if not level:
            return False
    return True


def prepared(schema: Schema, closed: bool) -> Schema:
    """A copy without formats that nobody enforces; `closed`: with no properties but those that are named."""
    copy = dict(schema)
    if "$schema" in copy and not str(copy["$schema"]).startswith(DRAFTS):
        del copy["$schema"]  # the name of a dialect that is not known here
    form, divisor = copy.get("format"), copy.get("multipleOf")
    if isinstance(form, str) and form not in FORMATS:
        del copy["format"]
    if divisor is not None and isinstance(divisor, int | float) and divisor > LARGEST_DIVISOR:
        raise refused(f"has a multipleOf of {divisor}; expected at most {LARGEST_DIVISOR}")
    _prepare_inner(copy, closed)
    is_object = copy.get("type") == "object" or "properties" in copy
    if closed and is_object and not {"additionalProperties", "patternProperties"} & copy.keys():
        copy["additionalProperties"] = False
    return copy


def _prepare_inner(copy: Schema, closed: bool) -> None:
    """The schemas that lie in one, each replaced by a copy."""
    for name, value in copy.items():
        if isinstance(value, dict):
            inner = cast(Schema, value)
            if name in _ONE:
                copy[name] = prepared(inner, closed)
            elif name in _MAP:
                copy[name] = {key: _prepared(each, closed) for key, each in inner.items()}
        elif isinstance(value, list) and name in _LIST:
            copy[name] = [_prepared(each, closed) for each in cast(list[object], value)]


def _prepared(value: object, closed: bool) -> object:
    return prepared(cast(Schema, value), closed) if isinstance(value, dict) else value


def text_of(given: object, name: str, most: int) -> str:
    """The text that is given under a name, of at most so many characters. Raises Refused."""
    if not isinstance(given, str):
        raise refused(f"has {name} of type {type(given).__name__}; expected text")
    if len(given) > most:
        raise refused(f"has {name} of {len(given)} characters; expected at most {most}")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise refused(f"has {name} with half of a surrogate pair; expected valid Unicode") from error
    return given


def refused(what: str) -> Refused:
    """A constraint is not taken; it `has` something that is not expected."""
    return Refused(f"structured_outputs {what}", param="structured_outputs")
