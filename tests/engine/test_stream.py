"""Text, stop strings and ends, from the events of one request."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from headrace.engine.request import Event, Logprobs, Request, SamplingParams
from headrace.engine.stream import Stream, Update
from headrace.text.tokenizer import Tokenizer
from headrace.text.vocabulary import Vocabulary
from tests import tiny

EOS = tiny.EOS
WORDS = Tokenizer(Vocabulary(tiny.library(), {"eos_token": tiny.SPECIALS[EOS]}))


def stream(prompt: str = "q", tokenizer: Tokenizer | None = WORDS, **params) -> Stream:
    prompt_ids = tuple(WORDS.encode(prompt))
    return Stream(Request(id="a", prompt=prompt_ids, params=SamplingParams(**params)), tokenizer)


def feed(into: Stream, ids: list[int], last: Event | None = None) -> list[Update]:
    updates = [into.take(Event("a", token)) for token in ids]
    return [*updates, into.take(last)] if last else updates


def end(finish: str = "length", token: int | None = None, stop: int | None = None) -> Event:
    return Event("a", token, finish, stop)


def ends(updates: list[Update]) -> list[Update]:
    return [update for update in updates if update.finish]


@given(st.text(st.characters(codec="utf-8"), max_size=30), st.booleans())
def test_pieces_together_are_the_whole_text(text: str, skip: bool):
    one = stream(skip_special_tokens=skip)
    ids = WORDS.encode(text)
    updates = feed(one, ids, end())
    assert "".join(update.text for update in updates) == one.text == text
    assert [token for update in updates for token in update.token_ids] == one.token_ids == ids
    assert len(ends(updates)) == 1


def test_half_a_character_at_the_end_is_shown_as_such():
    one = stream()
    updates = feed(one, WORDS.encode("aé")[:-1], end())
    assert [update.text for update in updates] == ["a", "", "\ufffd"]


@pytest.mark.parametrize(
    ("how", "finish", "stop"),
    [("length", "stop", "a\ufffd"), ("abort", "abort", None), ("error", "error", None)],
)
def test_a_stop_string_in_what_is_left_at_the_end(how: str, finish: str, stop: str | None):
    one = stream(stop="a\ufffd")
    feed(one, WORDS.encode("caé")[:-1], end(how))
    assert (one.text, one.finish, one.stop) == ("c", finish, stop)


def test_special_tokens_are_left_out_or_not():
    for skip, expected in ((True, "ab"), (False, "a<|im_start|>b")):
        one = stream(skip_special_tokens=skip)
        feed(one, WORDS.encode("a<|im_start|>b"), end())
        assert one.text == expected


@pytest.mark.parametrize(("include", "text"), [(False, "one "), (True, "one STOP")])
def test_a_stop_string_over_several_tokens(include: bool, text: str):
    one = stream(stop=["STOP", "never"], include_stop_str_in_output=include)
    updates = feed(one, WORDS.encode("one STOP two"))
    (last,) = ends(updates)
    assert (last.finish, last.stop, last.cancel) == ("stop", "STOP", True)
    assert one.text == text
    assert one.token_ids == WORDS.encode("one STOP")
    assert updates[updates.index(last) + 1 :] == [Update()] * 4


def test_the_beginning_of_a_stop_string_is_held_back_until_the_end():
    one = stream(stop="STOP")
    updates = feed(one, WORDS.encode("a STO"), end())
    assert [update.text for update in updates] == ["a", " ", "", "", "", "STO"]
    assert (one.finish, one.stop) == ("length", None)


def test_a_stop_string_that_the_last_token_completes_needs_no_cancel():
    one = stream(stop="STOP")
    feed(one, WORDS.encode("STO"))
    update = one.take(end(token=WORDS.encode("P")[0]))
    assert update == Update("", tuple(WORDS.encode("P")), None, "stop", "STOP", cancel=False)


def test_no_stop_string_is_looked_for_before_min_tokens():
    one = stream(stop="x", min_tokens=3)
    updates = feed(one, WORDS.encode("xxxx"))
    assert len(ends(updates)) == 1
    assert one.text == "xx"
    assert one.token_ids == WORDS.encode("xxx")


@pytest.mark.parametrize(("include", "text"), [(False, "ab"), (True, "ab<|im_end|>")])
def test_the_token_that_ends_the_answer_is_in_the_ids_and_in_the_text_if_asked_for(include: bool, text: str):
    one = stream(include_stop_str_in_output=include, skip_special_tokens=False)
    updates = feed(one, WORDS.encode("ab"), end("stop", EOS, EOS))
    assert one.text == text
    assert one.token_ids[-1] == EOS
    assert (updates[-1].finish, updates[-1].stop) == ("stop", EOS)


def test_the_stopping_token_does_not_hide_what_was_held_back():
    one = stream(stop="STOP")
    feed(one, WORDS.encode("ST"), end("stop", EOS, EOS))
    assert one.text == "ST"


@pytest.mark.parametrize("finish", ["length", "stop", "abort", "error"])
def test_exactly_one_update_ends_it(finish: str):
    one = stream()
    updates = feed(one, WORDS.encode("ab"), end(finish))
    updates += feed(one, WORDS.encode("cd"), end("abort"))
    (last,) = ends(updates)
    assert last.finish == one.finish == finish
    assert one.text == "ab"


@pytest.mark.parametrize(("tokenizer", "detokenize"), [(None, True), (WORDS, False)])
def test_token_ids_without_text(tokenizer: Tokenizer | None, detokenize: bool):
    one = stream(tokenizer=tokenizer, detokenize=detokenize)
    updates = feed(one, [5, 6], end())
    assert [update.text for update in updates] == [""] * 3
    assert one.token_ids == [5, 6]


def test_logprobs_and_what_was_cached_are_kept():
    one = stream(logprobs=1, prompt_logprobs=1)
    found = Logprobs(-1.0, 1, [(5, -1.0)])
    assert one.take(Event("a", None, prompt_logprobs=[found])) == Update()
    assert one.take(Event("a", 5, logprobs=found, cached=16)).logprobs == found
    assert (one.prompt_logprobs, one.logprobs, one.cached) == ([found], [found], 16)


PIECES = st.lists(st.sampled_from(["a", "b", "é", "ab", "ba"]), max_size=12).map("".join)


@given(
    PIECES, st.lists(st.sampled_from(["ab", "bab", "é", "aab", "bb"]), min_size=1, max_size=3), st.booleans()
)
def test_what_is_shown_does_not_depend_on_how_it_came(text: str, stops: list[str], include: bool):
    """The text ends at the stop string that is complete first, and is all there otherwise."""
    one = stream(stop=stops, include_stop_str_in_output=include)
    updates = feed(one, WORDS.encode(text), end())
    found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    if not found:
        assert (one.text, one.finish) == (text, "length")
    else:
        after, at, stop = min(found)
        assert (one.text, one.finish, one.stop) == (text[: after if include else at], "stop", stop)
    assert "".join(update.text for update in updates) == one.text
    assert len(ends(updates)) == 1


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.booleans(), st.sampled_from(["length", "stop"]))
def test_a_stream_that_is_read_at_the_end_says_the_same(text: str, skip: bool, finish: str):
    ids = [*WORDS.encode(text), EOS]
    params = SamplingParams(skip_special_tokens=skip)
    both = [Stream(Request(id="a", prompt=(7,), params=params), WORDS, whole) for whole in (False, True)]
    for one in both:
        for token in ids[:-1]:
            event = Event("a", token, cached=3)
            assert (one.whole and one.keep(event)) or one.take(event).token_ids == (token,)
        one.take(end(finish, ids[-1], ids[-1] if finish == "stop" else None))
    told = [(one.text, one.token_ids, one.cached, one.finish, one.stop) for one in both]
    assert told[0] == told[1]
    assert both[0].token_ids == ids


def test_what_is_more_than_a_token_is_not_kept():
    one = Stream(Request(id="a", prompt=(7,)), WORDS, whole=True)
    a, b = WORDS.encode("ab")
    found = Logprobs(-1.0, 1, [])
    assert not one.keep(Event("a", a)), "when the first came is told"
    one.take(Event("a", a))
    assert one.keep(Event("a", b))
    for event in (Event("a", b, logprobs=found), Event("a", None, prompt_logprobs=[found]), end(token=b)):
        assert not one.keep(event)
    assert one.take(Event("a", b, logprobs=found)).text == "bb", "what was kept comes first"
    assert one.take(Event("a", None, "abort")).finish == "abort"
    assert not one.keep(Event("a", b))
    assert (one.text, one.token_ids) == ("abb", [a, b, b])


def test_a_stop_string_is_looked_for_in_every_token():
    params = SamplingParams(stop="b")
    assert not Stream(Request(id="a", prompt=(7,), params=params), WORDS, whole=True).whole
