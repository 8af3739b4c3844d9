"""What a tokenizer says, does and refuses, whatever its vocabulary."""

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models

from headrace.base.errors import Refused
from headrace.text.tokenizer import Tokenizer
from headrace.text.vocabulary import Vocabulary
from tests.text.vocabularies import CORPUS, byte_level_metadata


@given(st.lists(st.integers(0, 520), max_size=30), st.booleans())
def test_decoding_equals_the_library(byte_level: Tokenizer, ids: list[int], skip: bool) -> None:
    assert byte_level.decode(ids, skip) == byte_level.backend.decode(ids, skip_special_tokens=skip)


@given(st.sampled_from(CORPUS), st.booleans())
def test_decoding_pieces_equals_the_library_where_bytes_are_whole(
    pieces: Tokenizer, text: str, skip: bool
) -> None:
    ids = pieces.encode(text)
    assert pieces.decode(ids, skip) == pieces.backend.decode(ids, skip_special_tokens=skip)


def test_special_text_is_special(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("<|im_start|>hi<|im_end|>")
    assert (ids[0], ids[-1]) == (1, 2)


def test_what_it_says_of_itself(byte_level: Tokenizer) -> None:
    assert (byte_level.bos_id, byte_level.eos_id) == (1, 2)
    assert byte_level.eos_ids == {0, 2}  # <|endoftext|> ends a text wherever it is a special token
    assert byte_level.special_ids == {0, 1, 2}
    assert byte_level.vocab_size == 501
    assert byte_level.id_to_piece(1) == "<|im_start|>"
    assert byte_level.id_to_piece(9999) is None
    assert byte_level.piece_to_id("<think>") == 500
    assert byte_level.piece_to_id("nothing") is None
    assert byte_level.decode([9999]) == ""


def test_the_fingerprint_is_the_same_for_the_same_and_another_for_another(byte_level: Tokenizer) -> None:
    assert Tokenizer.from_gguf(byte_level_metadata()).fingerprint == byte_level.fingerprint
    assert Tokenizer.from_gguf(byte_level_metadata("gpt-2")).fingerprint != byte_level.fingerprint


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
@pytest.mark.parametrize("bad", [[-1], [2**40], ["a"], [None]])
def test_ids_that_are_none_are_refused(name: str, bad: list[Any], request: pytest.FixtureRequest) -> None:
    with pytest.raises(Refused, match="token ids must be whole numbers"):
        request.getfixturevalue(name).decode(bad)


@pytest.mark.parametrize("bad", ["a\ud800b", 5, None])
def test_texts_that_are_none_are_refused(byte_level: Tokenizer, bad: Any) -> None:
    with pytest.raises(Refused, match=r"text (is|holds)") as caught:
        byte_level.encode(bad)
    assert caught.value.param == "prompt"


def test_bad_words_come_with_and_without_a_space(byte_level: Tokenizer) -> None:
    bare, spaced = byte_level.word_ids("wheel")
    assert (byte_level.decode(bare), byte_level.decode(spaced)) == ("wheel", " wheel")
    assert byte_level.word_ids("  wheel") == [bare, spaced]
    assert byte_level.word_ids("\U00010348") == [
        byte_level.encode("\U00010348")
    ]  # the space is a token of its own
    for bad in ("", "  "):
        with pytest.raises(Refused, match="not empty"):
            byte_level.word_ids(bad)


def test_templates_come_from_the_checkpoint(byte_level: Tokenizer, metaspace: Tokenizer) -> None:
    assert byte_level.chat_template().render([{"role": "user", "content": "hi"}]) == "user: hi\n"
    assert byte_level.chat_template() is byte_level.template
    assert metaspace.template is None
    with pytest.raises(Refused, match="no chat template") as caught:
        metaspace.chat_template()
    assert "--chat-template" in caught.value.hint


def test_gpt_oss_ends_messages_with_a_token_that_does_not_end_the_answer() -> None:
    metadata = byte_level_metadata()
    tokens = [*metadata["tokenizer.ggml.tokens"], "<|end|>", "<|return|>"]
    types = [*metadata["tokenizer.ggml.token_type"], 3, 3]
    changed = metadata | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    assert Tokenizer.from_gguf(changed).eos_ids == {0, 2, len(tokens) - 1}


PIECES = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]


@pytest.mark.parametrize(
    ("steps", "spelling", "strip"),
    [
        ([decoders.ByteLevel()], "bytes", 0),
        (PIECES, "pieces", 0),
        ([*PIECES, decoders.Strip(" ", 1, 0)], "pieces", 1),
        ([*PIECES, decoders.Strip(" ", 1, 1)], "other", 0),
        ([decoders.Replace("_", " "), decoders.ByteFallback(), decoders.Fuse()], "other", 0),
        ([decoders.WordPiece()], "other", 0),
        ([], "other", 0),
    ],
)
def test_how_tokens_spell_text_is_read_off_the_decoder(steps: list[Any], spelling: str, strip: int) -> None:
    library = Library(models.WordLevel({"a": 0}, "a"))
    if steps:
        library.decoder = decoders.Sequence(steps)
    tokenizer = Tokenizer(Vocabulary(library))
    assert (tokenizer.spelling, tokenizer.strip_left) == (spelling, strip)
