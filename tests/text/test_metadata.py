"""A tokenizer written as GGUF metadata is read back as the same tokenizer, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from headrace.base.errors import Refused
from headrace.text.byte_level import FAMILIES, build
from headrace.text.metadata import PROBE, metadata_of
from headrace.text.sentence_piece import Pieces
from headrace.text.sentence_piece import build as build_pieces
from headrace.text.tokenizer import Tokenizer
from headrace.text.vocabulary import Vocabulary

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["t h", "th e", "Ġ a", "1 2", "12 3", "l l", "Ġ Ġ"]
TOKENS = [*ALPHABET, *(merge.replace(" ", "") for merge in MERGES)]


def byte_level(family: str = "gpt-2", **more: Any) -> Tokenizer:
    backend = build(TOKENS, MERGES, FAMILIES[family])
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>"])
    backend.add_tokens(["<tool>"])
    return Tokenizer(Vocabulary(backend, {"eos_token": "<|endoftext|>"}, **more))


def pieces(prefix: bool = True) -> Tokenizer:
    plain = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    types = [2, 3, 3] + [6] * 256
    words = ["▁", "t", "h", "e", "l", "o", "H", "th", "▁t", "▁th", "▁the", "the", "ll", "▁▁"]
    scores = [0.0] * len(plain) + [-100.0] * 7 + [-3.0, -2.0, -1.0, -5.0, -6.0, -4.0, -7.0]
    listed = Pieces([*plain, *words], scores, types + [1] * len(words), prefix)
    backend = build_pieces(listed)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(Vocabulary(backend, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}))


def same(one: Tokenizer, other: Tokenizer) -> None:
    for text in (*PROBE, "the then Hello  the", "123 12 <tool> <|im_start|>x"):
        assert other.encode(text) == one.encode(text)
        assert other.decode(one.encode(text)) == one.decode(one.encode(text))
    assert other.eos_ids == one.eos_ids
    assert other.bos_id == one.bos_id
    assert other.special_ids == one.special_ids
    assert other.template_source == one.template_source


@pytest.mark.parametrize("family", FAMILIES)
def test_byte_level_there_and_back(family: str):
    before = byte_level(family, template_source="{{ messages }}")
    keys = metadata_of(before, before.vocab_size)
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.merges"] == MERGES
    assert FAMILIES[keys["tokenizer.ggml.pre"]].splits == FAMILIES[family].splits
    assert keys["tokenizer.ggml.pre"] != "default"
    same(before, Tokenizer.from_gguf(keys))


COMMON = [("gpt2", "gpt-2"), ("smollm", "smollm"), ("llama3", "llama-bpe"), ("qwen2", "qwen2")]


@pytest.mark.parametrize(("family", "name"), COMMON)
def test_families_go_by_the_name_that_is_common(family: str, name: str):
    """A name that only its own model's reader knows would be of no use."""
    before = byte_level(family)
    if family == "llama3":
        before.backend.post_processor = processors.TemplateProcessing(
            single=["<|im_start|>", "$A"],
            special_tokens=[("<|im_start|>", before.piece_to_id("<|im_start|>"))],
        )
        before = Tokenizer(
            Vocabulary(before.backend, {"eos_token": "<|endoftext|>", "bos_token": "<|im_start|>"})
        )
    assert metadata_of(before, before.vocab_size)["tokenizer.ggml.pre"] == name


@pytest.mark.parametrize("prefix", [False, True])
def test_pieces_there_and_back(prefix: bool):
    before = pieces(prefix)
    keys = metadata_of(before, before.vocab_size)
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] is prefix
    assert keys["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    scores = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"], strict=True))
    order = ["\u2581th", "\u2581t", "th", "ll", "\u2581the", "o"]
    assert sorted(order, key=scores.__getitem__, reverse=True) == order
    same(before, Tokenizer.from_gguf(keys))


def test_rows_beyond_the_words_are_unused():
    before = byte_level()
    keys = metadata_of(before, before.vocab_size + 3)
    assert keys["tokenizer.ggml.tokens"][-1] == f"[PAD{before.vocab_size + 2}]"
    assert keys["tokenizer.ggml.token_type"][-4:] == [4, 5, 5, 5]
    same(before, Tokenizer.from_gguf(keys))


def test_what_comes_before_and_after_a_text(tmp_path: Path):
    byte_level().backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}
    settings |= {"add_bos_token": True, "add_eos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    before = Tokenizer.from_folder(tmp_path)
    keys = metadata_of(before, before.vocab_size)
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_eos_token"] is True
    same(before, Tokenizer.from_gguf(keys))


def test_more_than_one_ending():
    before = byte_level(eos_ids=[3, 4], guess_endings=False)
    keys = metadata_of(before, before.vocab_size)
    ends = {keys[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot", "eom")}
    assert ends == before.eos_ids == {3, 4, before.piece_to_id("<|endoftext|>")}


def test_an_ending_without_a_role():
    backend = build(TOKENS, MERGES, FAMILIES["gpt-2"])
    before = Tokenizer(Vocabulary(backend, {}, eos_ids=[9], guess_endings=False))
    assert metadata_of(before, before.vocab_size)["tokenizer.ggml.eos_token_id"] == 9


def other(kind: str) -> Tokenizer:
    backend = build(TOKENS, MERGES, FAMILIES["gpt-2"])
    if kind == "another split":
        split = pre_tokenizers.Split(Regex("[aeiou]"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    elif kind == "another normalizer":
        backend.normalizer = normalizers.Lowercase()
    elif kind == "unigram":
        backend = Library(models.Unigram([("a", 0.0), ("b", -1.0)], 0, False))
        backend.decoder = decoders.Metaspace()
    return Tokenizer(Vocabulary(backend))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("another split", "no name for how this tokenizer splits"),
        ("another normalizer", "cannot say how this tokenizer cuts"),
        ("unigram", "kind Unigram cannot be written"),
    ],
)
def test_what_the_format_has_no_words_for_is_refused(kind: str, words: str):
    with pytest.raises(Refused, match=words) as caught:
        metadata_of(other(kind), 1000)
    assert "serve the folder" in caught.value.hint


def test_more_words_than_rows_are_refused():
    with pytest.raises(Refused, match="266 tokens, the embedding only 100 rows"):
        metadata_of(byte_level(), 100)
