"""What may be said in a field of SamplingParams: (its name, what was given) to what is kept, or Refused; torch-free."""

import math
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import cast

from headrace.base.errors import Refused
from headrace.engine.structured import StructuredOutputsParams, constraint


def _wrong(name: str, given: object, expected: str, hint: str | None = None) -> Refused:
    text = repr(given)
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return Refused(f"{name} is {shown}; expected {expected}", param=name, hint=hint)


def _whole_number(given: object) -> int | None:
    """The number, or None for anything that is not one. True is no number, 1.0 is no whole one."""
    if isinstance(given, bool) or not isinstance(given, Integral):
        return None
    return int(given)


def _number(given: object) -> float | None:
    """The finite number, or None for anything that is not one."""
    if isinstance(given, bool) or not isinstance(given, Real):
        return None
    try:
        value = float(given)
    except OverflowError:  # an int beyond any float
        return None
    return value if math.isfinite(value) else None


def real(
    low: float, high: float, *, above: bool = False, hint: str | None = None
) -> Callable[[str, object], float]:
    """A number from low (or just above it) to high."""
    span = f"{'above ' if above else ''}{low:g} to {high:g}" if high < math.inf else f"above {low:g}"
    expected = f"a finite number {span if high == math.inf else f'from {span}'}"

    def check(name: str, given: object) -> float:
        value = _number(given)
        if value is None or not low <= value <= high or (above and value == low):
            raise _wrong(name, given, expected, hint)
        return value

    return check


def whole(
    low: int, high: int | None, expected: str, *, optional: bool = False, hint: str | None = None
) -> Callable[[str, object], int | None]:
    """A whole number in a range, or None where that is a choice."""

    def check(name: str, given: object) -> int | None:
        if given is None and optional:
            return None
        value = _whole_number(given)
        if value is None or value < low or (high is not None and value > high):
            raise _wrong(name, given, expected, hint)
        return value

    return check


def seed(name: str, given: object) -> int | None:
    value = whole(-(2**63), 2**63 - 1, "a whole number of 64 bits", optional=True)(name, given)
    return None if value == -1 else value


def switch(name: str, given: object) -> bool:
    if not isinstance(given, bool):
        raise _wrong(name, given, "true or false")
    return given


def strings(most: int) -> Callable[[str, object], tuple[str, ...]]:
    """A string or several, none of them empty."""

    def check(name: str, given: object) -> tuple[str, ...]:
        if given is None:
            return ()
        expected = f"a string or a list of at most {most} strings, none of them empty"
        items: tuple[object, ...] = (given,) if isinstance(given, str) else _items(name, given, expected)
        found = tuple(item for item in items if isinstance(item, str) and item)
        if len(found) < len(items) or len(found) > most:
            raise _wrong(name, given, expected)
        return found

    return check


def ids(*, optional: bool = False) -> Callable[[str, object], tuple[int, ...] | None]:
    """Token ids. Where they restrict (`optional`), None is no restriction and an empty list a mistake."""

    def check(name: str, given: object) -> tuple[int, ...] | None:
        if given is None:
            return None if optional else ()
        expected = "a list of token ids (whole numbers, 0 or more)"
        found: list[int] = []
        for item in _items(name, given, expected):
            token = _whole_number(item)
            if token is None or token < 0:
                raise _wrong(name, given, expected)
            found.append(token)
        if optional and not found:
            raise _wrong(name, given, "at least one token id", hint="leave it out to allow every token")
        return tuple(found)

    return check


def bias(name: str, given: object) -> dict[int, float] | None:
    """Token id -> bias. Ids may be strings, as JSON objects have them."""
    if given is None:
        return None
    expected = "token ids (0 or more) with numbers from -100 to 100"
    if not isinstance(given, Mapping):
        raise _wrong(name, given, expected)
    found: dict[int, float] = {}
    for key, bias in cast(Mapping[object, object], given).items():
        token = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 20 else _whole_number(key)
        value = _number(bias)
        if token is None or token < 0 or value is None or not -100 <= value <= 100:
            raise _wrong(name, cast(object, given), expected)
        found[token] = value
    return found or None


def structured(name: str, given: object) -> StructuredOutputsParams | None:
    """A constraint, or its fields in a mapping."""
    if given is None or isinstance(given, StructuredOutputsParams):
        return given
    if not isinstance(given, Mapping):
        raise _wrong(name, given, "StructuredOutputsParams, or a mapping of its fields")
    return constraint(name, {str(key): value for key, value in cast(Mapping[object, object], given).items()})


def _items(name: str, given: object, expected: str) -> tuple[object, ...]:
    if not isinstance(given, Collection) or isinstance(given, (str, bytes, Mapping)):
        raise _wrong(name, cast(object, given), expected)
    return tuple(cast(Collection[object], given))
