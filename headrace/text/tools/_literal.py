"""Values that models write as plain text or as Python, turned into JSON."""

import ast
import json
from collections.abc import Mapping
from typing import Any, cast

LONGEST = 20_000
"""Characters of a Python literal; longer ones are taken as text, because Python's parser is not made for strangers."""

TYPES: dict[type[Any], str] = {
    str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object",
    type(None): "null",
}  # fmt: skip


def from_python(text: str) -> str:
    """JSON of a Python or JSON literal; what is neither is taken as a string."""
    found, value = literal(text.strip())
    return dump(value if found else text.strip())


def from_text(text: str, schema: object) -> str:
    """JSON of an argument written without quotes, as its schema wants it; what does not fit is a string."""
    wanted = types(schema)
    found, value = literal(text.strip())
    if not found:
        return dump(text)
    kind = TYPES.get(cast(type[Any], type(value)), "string")
    if kind in wanted or not wanted or (kind == "integer" and "number" in wanted):
        return dump(value)
    if kind == "number" and "integer" in wanted and float(value).is_integer():
        return dump(int(value))
    return dump(text)


def types(schema: object) -> frozenset[str]:
    """The types of value that a schema allows; empty where it does not say, or not in a simple way."""
    if not isinstance(schema, Mapping):
        return frozenset({"string"})
    entries = cast(Mapping[str, Any], schema)
    kind = entries.get("type")
    if isinstance(kind, str):
        return frozenset({kind})
    if isinstance(kind, list):
        return frozenset(str(one) for one in cast(list[object], kind))
    for name in ("anyOf", "oneOf"):
        if isinstance(some := entries.get(name), list) and some:
            found = [types(one) for one in cast(list[object], some)]
            return frozenset[str]().union(*found) if all(found) else frozenset()
    values = [entries["const"]] if "const" in entries else entries.get("enum")
    if isinstance(values, list):
        return frozenset(TYPES.get(type(one), "string") for one in cast(list[object], values))
    return frozenset() if {"$ref", "allOf", "properties", "items"} & set(entries) else frozenset({"string"})


def literal(text: str) -> tuple[bool, Any]:
    """Whether `text` is a JSON or Python literal with a value that JSON knows, and the value."""
    for read in (json.loads, ast.literal_eval):
        if len(text) > LONGEST and read is ast.literal_eval:
            break
        try:
            value = read(text)
            dump(value)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return True, value
    return False, None


def dump(value: object) -> str:
    """JSON, characters as they are. Raises ValueError or TypeError for what JSON does not know."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if text.isascii() or _is_text(text) else json.dumps(value)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
