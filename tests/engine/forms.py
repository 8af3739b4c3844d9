"""Random schemas, and whether a value fits one: a second opinion on what llguidance lets through."""

import re
from datetime import date
from random import Random
from typing import Any

Schema = dict[str, Any]


def schema(dice: Random, depth: int = 2) -> Schema:
    """Bounded, so that a model that says anything comes to an end."""
    kinds = [_string, _integer, _enum, _boolean, _union, _date, *([_object, _array] * 2 if depth else [])]
    return dice.choice(kinds)(dice, depth)


def _string(dice: Random, depth: int) -> Schema:
    if dice.random() < 0.3:
        return {"type": "string", "pattern": "^[a-c]{1,3}x?$"}
    return {"type": "string", "maxLength": dice.randint(0, 6)}


def _integer(dice: Random, depth: int) -> Schema:
    low = dice.randint(-50, 50)
    return {"type": "integer", "minimum": low, "maximum": low + dice.randint(0, 500)}


def _enum(dice: Random, depth: int) -> Schema:
    return {"enum": dice.sample(["red", 'a "b"', "ü\n", 7, None, "\\", [1], "🙂"], dice.randint(1, 4))}


def _boolean(dice: Random, depth: int) -> Schema:
    return {"type": "boolean"}


def _date(dice: Random, depth: int) -> Schema:
    return {"type": "string", "format": "date"}


def _union(dice: Random, depth: int) -> Schema:
    return {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 0, "maximum": 9}]}


def _array(dice: Random, depth: int) -> Schema:
    least = dice.randint(0, 2)
    return {
        "type": "array",
        "items": schema(dice, depth - 1),
        "minItems": least,
        "maxItems": least + dice.randint(0, 2),
    }


def _object(dice: Random, depth: int) -> Schema:
    names = [f"{word}{n}" for n, word in enumerate(dice.sample(["a", "b", "c c", "é"], dice.randint(0, 3)))]
    return {
        "type": "object",
        "properties": {name: schema(dice, depth - 1) for name in names},
        "required": dice.sample(names, dice.randint(0, len(names))),
        "additionalProperties": False,
    }


def fits(value: Any, form: Schema) -> bool:
    """Whether the value is one of those the schema allows."""
    if "enum" in form:
        return any(value == each and type(value) is type(each) for each in form["enum"])
    if "anyOf" in form:
        return any(fits(value, each) for each in form["anyOf"])
    return _FITS[form["type"]](value, form)


def _fits_string(value: Any, form: Schema) -> bool:
    if not isinstance(value, str) or len(value) > form.get("maxLength", 1 << 30):
        return False
    if form.get("format") == "date":
        month, day = int(value[5:7]), int(value[8:])
        return (
            bool(re.fullmatch(r"\d{4}-\d\d-\d\d", value))
            and bool(date(2024, month, min(day, 28)))
            and day < 32
        )
    return re.search(form.get("pattern", ""), value) is not None


def _fits_integer(value: Any, form: Schema) -> bool:
    return type(value) is int and form["minimum"] <= value <= form["maximum"]


def _fits_array(value: Any, form: Schema) -> bool:
    if not isinstance(value, list) or not form["minItems"] <= len(value) <= form["maxItems"]:
        return False
    return all(fits(each, form["items"]) for each in value)


def _fits_object(value: Any, form: Schema) -> bool:
    if not isinstance(value, dict) or not set(form["required"]) <= value.keys() <= form["properties"].keys():
        return False
    return all(fits(each, form["properties"][name]) for name, each in value.items())


_FITS = {
    "string": _fits_string,
    "integer": _fits_integer,
    "array": _fits_array,
    "object": _fits_object,
    "boolean": lambda value, form: isinstance(value, bool),
    "null": lambda value, form: value is None,
}
