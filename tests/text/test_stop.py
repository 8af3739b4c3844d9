"""Stop strings: what is found and shown must not depend on how the text was cut."""

import tracemalloc

import hypothesis.strategies as st
from hypothesis import given

from headrace.text.stop import StopStrings
from tests.text.cutting import pieces

letters = st.text("ab ", max_size=30)
stop_lists = st.lists(st.text("ab ", min_size=1, max_size=5), max_size=4)


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Grow the text by one character; stop as soon as it ends with a stop string, the longest of them."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[:end] if include else text[: end - len(stop)], stop
    return text, None


@given(letters, stop_lists, st.lists(st.integers(0, 29)), st.booleans())
def test_any_cut_gives_what_the_definition_gives(
    text: str, stops: list[str], at: list[int], include: bool
) -> None:
    watch = StopStrings(stops, include)
    shown, found = "", None
    for piece in pieces(text, at):
        more, found = watch.push(piece)
        shown += more
        if found:
            break
    assert (shown + watch.flush(), found) == naive(text, stops, include)


@given(letters, stop_lists)
def test_nothing_is_shown_that_could_belong_to_a_stop_and_nothing_else_is_held(
    text: str, stops: list[str]
) -> None:
    watch = StopStrings(stops)
    seen = shown = ""
    for character in text:
        more, found = watch.push(character)
        seen, shown = seen + character, shown + more
        if found:
            return
        held = seen[len(shown) :]
        tails = [seen[n:] for n in range(len(seen)) if any(stop.startswith(seen[n:]) for stop in stops)]
        assert held == max(tails, key=len, default="")


def test_a_stop_string_may_span_pieces() -> None:
    watch = StopStrings(["\n\nUser:"])
    assert watch.push("Hello\n") == ("Hello", None)
    assert watch.push("\nUs") == ("", None)
    assert watch.push("er: hi") == ("", "\n\nUser:")
    assert watch.matched == "\n\nUser:"
    assert watch.push("more") == ("", "\n\nUser:")
    assert watch.flush() == ""


def test_what_was_held_comes_out_when_it_was_no_stop() -> None:
    watch = StopStrings(["END"])
    assert watch.push("the EN") == ("the ", None)
    assert watch.push("d") == ("ENd", None)
    assert watch.push("E") == ("", None)
    assert watch.flush() == "E"
    assert watch.flush() == ""


def test_include_keeps_the_stop_string_and_nothing_after() -> None:
    assert StopStrings(["b"], include=True).push("abc") == ("ab", "b")
    assert StopStrings(["b"], include=False).push("abc") == ("a", "b")


def test_long_stop_strings_take_no_more_room_than_they_are_long() -> None:
    """A request may have 64 of 512 characters, and a thousand answers that look for them."""
    stops = [f"{n:02d}" * 256 for n in range(64)]
    tracemalloc.start()
    try:
        watch = StopStrings(stops)
        assert tracemalloc.get_traced_memory()[0] < 10_000
    finally:
        tracemalloc.stop()
    assert watch.push("so 0707") == ("so ", None)
    assert watch.push("08") == ("0707", None)
