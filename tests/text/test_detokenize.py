"""Detokenizing in pieces equals detokenizing at once."""

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from headrace.text.detokenize import Detokenizer
from headrace.text.tokenizer import Tokenizer
from tests.text.cutting import pieces
from tests.text.vocabularies import CORPUS

numbers = st.lists(st.integers(0, 520), max_size=40)


def in_pieces(tokenizer: Tokenizer, prompt: list[int], parts: list[list[int]], skip: bool) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt, skip)
    return [*(detokenizer.push(part) for part in parts), detokenizer.finish()]


@given(ids=numbers, at=st.lists(st.integers(0, 40)), skip=st.booleans())
def test_pieces_equal_whole(any_tokenizer: Tokenizer, ids: list[int], at: list[int], skip: bool) -> None:
    assert "".join(in_pieces(any_tokenizer, [], pieces(ids, at), skip)) == any_tokenizer.decode(ids, skip)


@given(prompt=numbers, ids=numbers, skip=st.booleans())
@example(prompt=[0], ids=[300, 301], skip=True)
def test_a_prompt_and_its_continuation_equal_the_whole(
    any_tokenizer: Tokenizer, prompt: list[int], ids: list[int], skip: bool
) -> None:
    before = any_tokenizer.decode(prompt, skip).rstrip("\ufffd")
    made = "".join(in_pieces(any_tokenizer, prompt, [[index] for index in ids], skip))
    whole = any_tokenizer.decode(prompt + ids, skip)
    assert whole.endswith(made)
    assert whole[: len(whole) - len(made)].rstrip("\ufffd") == before


@given(text=st.text(max_size=30) | st.sampled_from(CORPUS), skip=st.booleans())
def test_text_comes_back_and_no_character_is_ever_split(byte_level: Tokenizer, text: str, skip: bool) -> None:
    ids = byte_level.encode(text)
    shown = ""
    detokenizer = Detokenizer(byte_level, [], skip)
    for index in ids:
        piece = detokenizer.push([index])
        shown += piece
        assert text.startswith(shown)
    assert shown + detokenizer.finish() == text


@pytest.mark.parametrize("name", ["byte_level", "pieces"])
def test_an_unfinished_character_is_held_then_flushed(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    prompt = tokenizer.encode("a", add_special_tokens=False)
    ids = [
        index
        for index in tokenizer.encode("\U00010348", add_special_tokens=False)
        if tokenizer.token_bytes(index) != b" "
    ]
    assert len(ids) == 4
    detokenizer = Detokenizer(tokenizer, prompt)
    assert [detokenizer.push([index]) for index in ids] == ["", "", "", "\U00010348"]
    assert [detokenizer.push([index]) for index in ids[:2]] == ["", ""]
    assert detokenizer.finish() == tokenizer.decode(prompt + ids[:2])[1:]
    assert detokenizer.finish() == ""


def test_a_character_may_begin_in_the_prompt(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("\U00010348")
    detokenizer = Detokenizer(byte_level, byte_level.encode("ab") + ids[:3])
    assert detokenizer.push(ids[3:]) == "\U00010348"


def test_the_first_space_goes_only_at_the_beginning(pieces: Tokenizer) -> None:
    ids = pieces.encode("the river")
    assert pieces.decode(ids) == "the river"
    assert Detokenizer(pieces, []).push(ids) == "the river"
    assert Detokenizer(pieces, pieces.encode("by")).push(ids[1:]) == " the river"


def test_special_tokens_are_shown_or_not(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("hi<|im_end|>you<think>")
    assert Detokenizer(byte_level, [], True).push(ids) == "hiyou<think>"
    assert Detokenizer(byte_level, [], False).push(ids) == "hi<|im_end|>you<think>"


def test_a_decoder_known_to_the_library_only_may_not_wait_for_ever() -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models

    from headrace.text.vocabulary import Vocabulary

    library = Library(models.WordLevel({"\ufffd": 0, "a": 1}, "a"))
    library.decoder = decoders.Sequence([decoders.Fuse()])
    tokenizer = Tokenizer(Vocabulary(library))
    detokenizer = Detokenizer(tokenizer, [])
    assert tokenizer.spelling == "other"
    assert "".join(detokenizer.push([0]) for _ in range(20)) != ""
    assert detokenizer.push([1]) + detokenizer.finish() != ""
