"""Reading what is not all there yet."""

import re

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from headrace.text.tape import Marks, Tape
from tests.text.cutting import pieces

MARKS = ("<end>", "<other", "\n<end>")


def until(text: str, cuts: list[int]) -> tuple[str, str, str, int]:
    """What comes before a mark, the mark, what is unread, and how much was read; by `Tape.until`."""
    tape, said = Tape(), []
    reading, mark = tape.until(Marks(*MARKS), said.append), None
    for piece in [*pieces(text, cuts), None]:
        if mark is None:
            tape.ended = piece is None
        tape.feed(piece or "")
        if mark is None:
            try:
                next(reading)
            except StopIteration as stop:
                mark = stop.value
    return "".join(said), str(mark), tape.rest(), tape.count


@given(st.text("<>endothr \n", max_size=30), st.lists(st.integers(0, 30), max_size=10))
@settings(max_examples=300)
def test_the_first_mark_is_found_however_the_text_is_cut(text: str, cuts: list[int]):
    found = re.search("|".join(map(re.escape, MARKS)), text)
    at, mark = (found.start(), found[0]) if found else (len(text), "")
    assert until(text, cuts) == (text[:at], mark, text[at:], len(text))


def test_what_was_read_is_remembered_where_that_was_asked_for():
    tape = Tape()
    tape.feed("abcdef")
    tape.take(1)
    tape.keep()
    tape.take(2)
    assert tape.kept() == "bc"
    tape.keep()
    tape.take(1)
    tape.forget()
    assert tape.kept() == ""
    assert tape.rest() == "ef"
    assert tape.count == 6


def test_options_that_begin_alike():
    tape = Tape()
    reading = tape.accept("abc", "abd")
    tape.feed("ab")
    assert next(reading, "done") is None
    tape.feed("d!")
    with pytest.raises(StopIteration) as stop:
        next(reading)
    assert stop.value.value == "abd"
    assert tape.rest() == "!"
