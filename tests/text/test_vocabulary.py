"""Checkpoint folders and GGUF metadata, good and bad."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from headrace.base.errors import BadCheckpoint, Refused
from headrace.text.tokenizer import Tokenizer
from tests.text.vocabularies import CORPUS, byte_level_metadata


@pytest.fixture
def folder(byte_level: Tokenizer, tmp_path: Path) -> Path:
    byte_level.backend.save(str(tmp_path / "tokenizer.json"))
    special = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    write(tmp_path, "tokenizer_config.json", special)
    return tmp_path


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def test_a_folder_gives_the_same_tokenizer_as_gguf(folder: Path, byte_level: Tokenizer) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.fingerprint == byte_level.fingerprint
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.spelling) == (1, {0, 2}, "bytes")
    assert tokenizer.template is None
    for text in CORPUS:
        assert tokenizer.encode(text) == byte_level.encode(text)


def test_transformers_reads_the_same_ids_from_the_folder(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    write(folder, "tokenizer_config.json", config)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(str(folder)), Tokenizer.from_folder(folder)
    for text in [*CORPUS, "<|im_start|>user\nhi<|im_end|>\n", "a<think>b"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        bare = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        assert ours.decode(ids) == theirs.decode(ids, **bare)


def test_generation_config_says_what_ends_a_text(folder: Path) -> None:
    write(folder, "config.json", {"eos_token_id": 7})
    assert Tokenizer.from_folder(folder).eos_ids == {0, 2, 7}
    write(folder, "generation_config.json", {"eos_token_id": [5, 9]})
    assert Tokenizer.from_folder(folder).eos_ids == {2, 5, 9}
    write(folder, "generation_config.json", {"eos_token_id": "2"})
    with pytest.raises(BadCheckpoint, match="eos_token_id"):
        Tokenizer.from_folder(folder)


def test_special_tokens_also_come_from_their_own_file(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {})
    special = {"bos_token": {"content": "<|im_start|>"}, "pad_token": "<|endoftext|>"}
    write(folder, "special_tokens_map.json", special)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.special_tokens == {"bos_token": "<|im_start|>", "pad_token": "<|endoftext|>"}


@pytest.mark.parametrize(
    ("flags", "before", "after"),
    [
        ({"add_bos_token": True}, [1], []),
        ({"add_eos_token": True}, [], [2]),
        ({"add_bos_token": True, "add_eos_token": True}, [1], [2]),
        ({"add_bos_token": False}, [], []),
    ],
)
def test_flags_put_bos_and_eos_around_a_text(
    folder: Path, flags: dict[str, bool], before: list[int], after: list[int]
) -> None:
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    write(folder, "tokenizer_config.json", special | flags)
    tokenizer = Tokenizer.from_folder(folder)
    bare = tokenizer.encode("hi", add_special_tokens=False)
    assert tokenizer.encode("hi") == [*before, *bare, *after]
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", special)
    assert Tokenizer.from_folder(folder).encode("hi") == [*before, *bare, *after]  # left as the file has it
    write(folder, "tokenizer_config.json", special | {"add_bos_token": False})
    assert Tokenizer.from_folder(folder).encode("hi") == [*bare, *after]


def test_where_templates_lie(folder: Path) -> None:
    config = {"eos_token": "<|im_end|>"}
    messages = [{"role": "user", "content": "hi"}]

    def text() -> str:
        return Tokenizer.from_folder(folder).chat_template().render(messages)

    write(folder, "tokenizer_config.json", config | {"chat_template": "from config{{ eos_token }}"})
    assert text() == "from config<|im_end|>"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "from list"}]
    write(folder, "tokenizer_config.json", config | {"chat_template": named})
    assert text() == "from list"
    write(folder, "chat_template.json", {"chat_template": "from json"})
    assert text() == "from json"
    write(folder, "chat_template.jinja", "from jinja")
    assert text() == "from jinja"


def test_settings_of_the_training_run_do_not_cut_texts(folder: Path, byte_level: Tokenizer) -> None:
    file = json.loads((folder / "tokenizer.json").read_text())
    file["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    write(folder, "tokenizer.json", file)
    assert Tokenizer.from_folder(folder).encode(CORPUS[0]) == byte_level.encode(CORPUS[0])


def test_tokens_declared_beside_the_file_are_added(folder: Path) -> None:
    def declared(**tokens: object) -> Tokenizer:
        config = {"eos_token": "<|im_end|>", "added_tokens_decoder": tokens}
        write(folder, "tokenizer_config.json", config)
        return Tokenizer.from_folder(folder)

    tokenizer = declared(**{"501": {"content": "<tool>", "special": True}})
    assert tokenizer.encode("<tool>") == [501]
    assert 501 in tokenizer.special_ids
    assert declared(**{"900": {"content": "<far>"}}).piece_to_id("<far>") is None  # its id cannot be had
    with pytest.raises(BadCheckpoint, match="has no content"):
        declared(x={})


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"model": 1}'])
def test_damaged_files_are_refused_or_harmless(folder: Path, name: str, text: str) -> None:
    write(folder, name, text)
    if text.startswith('{"') and name != "tokenizer.json":
        assert Tokenizer.from_folder(folder).vocab_size == 501
        return
    with pytest.raises(BadCheckpoint, match=name):
        Tokenizer.from_folder(folder)


def test_a_damaged_tokenizer_file_never_ends_in_anything_but_a_refusal(folder: Path) -> None:
    good = (folder / "tokenizer.json").read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(60):
        broken = bytearray(good[: chance.choice([len(good), chance.randrange(len(good))])])
        for _ in range(chance.randrange(1, 5)):
            broken[chance.randrange(len(broken))] = chance.choice(b'{}[]",:0a\xff')
        (folder / "tokenizer.json").write_bytes(broken)
        try:
            Tokenizer.from_folder(folder).encode("hi")
        except BadCheckpoint:
            refused += 1
    assert refused > 20


BAD: list[dict[str, Any]] = [
    {"model": None}, {"model": 3}, {"tokens": None}, {"tokens": []}, {"tokens": [1, 2]}, {"tokens": "abc"},
    {"merges": None}, {"merges": [1]}, {"merges": "x"}, {"token_type": [1]}, {"token_type": ["a"]}, {"pre": 3},
    {"bos_token_id": 501}, {"eos_token_id": -1}, {"eos_token_id": "2"}, {"add_bos_token": "yes"},
    {"eot_token_id": 9999},
]  # fmt: skip


@pytest.mark.parametrize("change", BAD, ids=str)
def test_bad_metadata_is_refused(change: dict[str, Any]) -> None:
    metadata = byte_level_metadata() | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(BadCheckpoint, match="token"):
        Tokenizer.from_gguf(metadata)


def test_a_kind_of_vocabulary_not_known_is_refused() -> None:
    with pytest.raises(Refused, match="'rwkv'") as caught:
        Tokenizer.from_gguf(byte_level_metadata() | {"tokenizer.ggml.model": "rwkv"})
    assert "tokenizer.json" in caught.value.hint


def test_tokens_that_end_a_turn_are_found_by_key() -> None:
    metadata = byte_level_metadata() | {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 8}
    assert Tokenizer.from_gguf(metadata).eos_ids == {0, 2, 7, 8}


def test_a_vocabulary_without_merges_or_types_works() -> None:
    metadata = byte_level_metadata() | {"tokenizer.ggml.merges": []}
    del metadata["tokenizer.ggml.token_type"]
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.decode(tokenizer.encode("plain bytes é")) == "plain bytes é"


@pytest.mark.model
def test_the_default_model_s_tokenizer(default_model: Path) -> None:
    from headrace.checkpoint.gguf import Gguf  # here, because it loads torch

    tokenizer = Tokenizer.from_gguf(Gguf(default_model).metadata)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 49152)
    for text in CORPUS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    prompt = tokenizer.chat_template().render([{"role": "user", "content": "hi"}])
    assert tokenizer.encode(prompt, add_special_tokens=False)[0] == 1
    assert tokenizer.decode(tokenizer.encode("Hello   12")) == "Hello   12"
