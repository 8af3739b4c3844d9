"""JSON read as it arrives."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from headrace.text import json_text
from headrace.text.json_text import Malformed
from headrace.text.tape import Tape
from tests.text.cutting import pieces


def read(text: str, cuts: list[int]) -> tuple[str, str]:
    """What was said of a value, and what is left behind it. Raises Malformed."""
    tape, said = Tape(), []
    reading = json_text.value(tape, said.append)
    done = False
    for piece in pieces(text, cuts):
        tape.feed(piece)
        done = done or next(reading, 1) == 1
    tape.ended = True
    if not done:
        next(reading, None)
    return "".join(said), tape.rest()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


@given(
    values,
    st.booleans(),
    st.sampled_from([None, 0, 3]),
    st.lists(st.integers(0, 200)),
    st.sampled_from([" x", "}", ""]),
)
def test_any_json_passes_unchanged(
    value: object, ascii: bool, indent: int | None, cuts: list[int], rest: str
):
    text = json.dumps(value, ensure_ascii=ascii, indent=indent)
    assert read(text + rest, cuts) == (text, rest)


@given(st.text('{}[]",:\\u12aetrufalsn -.\n', max_size=30), st.lists(st.integers(0, 30)))
@settings(max_examples=300)
def test_the_same_however_it_is_cut_and_json_if_it_is_taken(text: str, cuts: list[int]):
    def outcome(cuts: list[int]) -> object:
        try:
            return read(text, cuts)
        except Malformed as fault:
            return fault.closers

    found = outcome(cuts)
    assert found == outcome([]) == outcome(list(range(len(text))))
    if isinstance(found, tuple):
        json.loads(found[0])


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ('"a\nb\x00"', '"a\\nb\\u0000"'),
        ('"\\d\\\'\\u12g"', '"\\\\d\'\\\\u12g"'),
        ("[True, False, None]", "[true, false, null]"),
    ],
)
def test_what_is_mended(text: str, mended: str):
    assert read(text, [])[0] == mended
    json.loads(mended)


@pytest.mark.parametrize(
    ("text", "closers"),
    [("[1, {\"a\": 2", "}]"), ("{\"a\": [[1]", "]}"), ("[1", "]"), ("[1,", ""), ("{\"a\"", ""), ("{a: 1}", ""),
     ("01", ""), ("\"x", ""), ("", ""), ("nul", ""), ('"\\', ""), ("\"\\u1", "")],
)  # fmt: skip
def test_brackets_that_are_missing(text: str, closers: str):
    with pytest.raises(Malformed) as caught:
        read(text, [])
    assert caught.value.closers == closers


def test_depth_is_no_danger():
    deep = "[" * 20_000 + "]" * 20_000
    assert read(deep, [])[0] == deep
