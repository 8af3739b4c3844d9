"""Byte-level vocabularies against tokenizers built by hand, and the splits against what they should cut."""

import unicodedata
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from headrace.base.errors import BadCheckpoint, UnknownName
from headrace.text import byte_level
from headrace.text.tokenizer import Tokenizer
from tests.text.vocabularies import CORPUS, byte_level_metadata


def test_the_alphabet_is_the_library_s() -> None:
    assert set(byte_level.BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_level.BYTE_OF.values()) == list(range(256))
    coded = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
        "é \n\x7f\xad"
    )[0][0]
    assert byte_level.spelled_bytes(coded) == "é \n\x7f\xad".encode()
    assert byte_level.spelled_bytes("a 日") == "a 日".encode()


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return byte_level_metadata()


def by_hand(metadata: dict[str, Any], *words: pre_tokenizers.PreTokenizer) -> Library:
    vocab = {token: n for n, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    library = Library(models.BPE(vocab, merges))
    library.pre_tokenizer = pre_tokenizers.Sequence(list(words))
    library.decoder = decoders.ByteLevel()
    return library


@pytest.mark.parametrize("text", CORPUS)
@pytest.mark.parametrize("pre", ["smollm", "gpt-2"])
def test_encoding_equals_a_tokenizer_built_by_hand(metadata: dict[str, Any], pre: str, text: str) -> None:
    words = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if pre == "smollm":
        words.insert(0, pre_tokenizers.Digits(individual_digits=True))
    ids = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": pre}).encode(text)
    assert ids == by_hand(metadata, *words).encode(text).ids


CUTS = {
    "smollm": ["it", "'s", "ĠI", "'", "LL", "Ġ", "1", "2", "3", "4", "ĠĠ", "Ġx", "+=(", "a", "ĊĊ", "Ġb"],
    "gpt-2": ["it", "'s", "ĠI", "'", "LL", "Ġ1234", "ĠĠ", "Ġx", "+=(", "a", "ĊĊ", "Ġb"],
    "llama-bpe": ["it", "'s", "ĠI", "'LL", "Ġ", "123", "4", "ĠĠ", "Ġx", "+=(", "a", "ĊĊ", "Ġb"],
    "qwen2": ["it", "'s", "ĠI", "'LL", "Ġ", "1", "2", "3", "4", "ĠĠ", "Ġx", "+=(", "a", "ĊĊ", "Ġb"],
    "tekken": ["it", "'s", "ĠI", "'LL", "Ġ", "1", "2", "3", "4", "ĠĠ", "Ġx", "+=(", "a", "ĊĊ", "Ġb"],
    "gpt-4o": ["it's", "ĠI'LL", "Ġ", "123", "4", "ĠĠ", "Ġx", "+=(", "a", "ĊĊ", "Ġb"],
    "deepseek-v3": ["it", "'s", "ĠI", "'LL", "Ġ", "123", "4", "ĠĠ", "Ġx", "+=(", "a", "ĊĊ", "Ġb"],
}


@pytest.mark.parametrize("pre", CUTS)
def test_text_is_cut_into_words_as_each_family_does(metadata: dict[str, Any], pre: str) -> None:
    splitter = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": pre}).backend.pre_tokenizer
    assert splitter is not None
    assert [word for word, _ in splitter.pre_tokenize_str("it's I'LL 1234   x+=(a\n\n b")] == CUTS[pre]


def test_camel_case_is_cut_by_the_newer_families(metadata: dict[str, Any]) -> None:
    for pre in ("tekken", "gpt-4o"):
        splitter = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": pre}).backend.pre_tokenizer
        assert splitter is not None
        assert [word for word, _ in splitter.pre_tokenize_str("camelCaseWORDs")] == ["camel", "Case", "WORDs"]


@pytest.mark.parametrize("pre", byte_level.FAMILIES)
def test_every_family_gives_the_text_back(metadata: dict[str, Any], pre: str) -> None:
    tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": pre})
    for text in CORPUS:
        expected = unicodedata.normalize("NFC", text) if byte_level.FAMILIES[pre].nfc else text
        assert tokenizer.decode(tokenizer.encode(text)).endswith(expected)


def test_a_word_that_is_a_token_is_taken_whole_where_the_family_does_so(metadata: dict[str, Any]) -> None:
    odd = metadata["tokenizer.ggml.tokens"] + ["zqzq"]
    types = metadata["tokenizer.ggml.token_type"] + [1]
    changed = metadata | {"tokenizer.ggml.tokens": odd, "tokenizer.ggml.token_type": types}
    whole = Tokenizer.from_gguf(changed | {"tokenizer.ggml.pre": "llama-bpe"})
    assert whole.encode("zqzq", add_special_tokens=False) == [len(odd) - 1]
    assert len(Tokenizer.from_gguf(changed).encode("zqzq")) > 1


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="llama-bpe") as caught:
        byte_level.family("qwen3")
    assert "'qwen2'" in caught.value.hint or "'qwen35'" in caught.value.hint


@pytest.mark.parametrize("merge", ["ab", "a zz9", "Ġ zzz", " a", "a b c"])
def test_merges_that_do_not_fit_are_refused(metadata: dict[str, Any], merge: str) -> None:
    merges = [*metadata["tokenizer.ggml.merges"], merge]
    with pytest.raises(BadCheckpoint, match="merge"):
        Tokenizer.from_gguf(metadata | {"tokenizer.ggml.merges": merges})


def test_a_merge_of_one_part_is_refused_though_its_pieces_would_do() -> None:
    with pytest.raises(BadCheckpoint, match="merge 'aa'"):
        byte_level.build(["a", "aa", "aaa"], ["a a", "aa"], byte_level.Family())
