"""SentencePiece BPE vocabularies: pieces with scores, from GGUF metadata or a tokenizer.model file.

SentencePiece: Kudo and Richardson, 2018 (arXiv:1808.06226). Its BPE merges, again and again, the neighbours
whose joined piece has the highest score; characters without a piece fall back to one piece per byte.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from headrace.base.errors import BadCheckpoint, Refused

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass
class Pieces:
    """A vocabulary in the order of its ids; `types` are the constants above."""

    tokens: list[str] = field(default_factory=list[str])
    scores: list[float] = field(default_factory=list[float])
    types: list[int] = field(default_factory=list[int])
    add_space_prefix: bool = True
    squeeze_spaces: bool = False


def piece_bytes(piece: str) -> bytes:
    """The bytes a piece stands for."""
    byte = BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()


def build(pieces: Pieces) -> Tokenizer:
    """A tokenizer without special tokens that merges by score.

    Two joins that give the same piece are tried in a fixed order rather than left to right, which can only show
    in runs of one repeated character. The space before a text also goes before text after an added token, as in
    the tokenizer.json files of these families. Raises BadCheckpoint when the lists do not belong together.
    """
    if not len(pieces.tokens) == len(pieces.scores) == len(pieces.types):
        raise BadCheckpoint(
            f"{len(pieces.tokens)} tokens, {len(pieces.scores)} scores and {len(pieces.types)} token types; "
            "they should be as many"
        )
    vocab = {token: index for index, token in enumerate(pieces.tokens)}
    unknown = pieces.tokens[pieces.types.index(UNKNOWN)] if UNKNOWN in pieces.types else None
    fallback = BYTE in pieces.types
    model = models.BPE(
        vocab=vocab, merges=_merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=fallback
    )
    backend = Tokenizer(model)
    steps: list[normalizers.Normalizer] = []
    if pieces.squeeze_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if pieces.add_space_prefix:
        steps.append(normalizers.Prepend(SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    decode: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if pieces.add_space_prefix:
        decode.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(decode)
    return backend


def _merges(pieces: Pieces) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, best score first."""
    joinable = {
        token: score
        for token, score, kind in zip(pieces.tokens, pieces.scores, pieces.types, strict=True)
        if kind in (NORMAL, UNUSED)
    }
    return [
        (whole[:cut], whole[cut:])
        for whole in sorted(joinable, key=lambda piece: -joinable[piece])
        for cut in range(1, len(whole))
        if whole[:cut] in joinable and whole[cut:] in joinable
    ]


def read_model(data: bytes) -> Pieces:
    """The vocabulary in a tokenizer.model file (protobuf `ModelProto`), BPE only.

    Raises BadCheckpoint when it is no such file, Refused for a Unigram model or one that rewrites its text.
    """
    pieces = Pieces()
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(value))
                pieces.tokens.append(piece[1].decode())
                pieces.scores.append(piece.get(2, 0.0))
                pieces.types.append(piece.get(3, NORMAL))
            elif number == 2 and dict(_fields(value)).get(3, 1) != 2:
                raise Refused(
                    "tokenizer.model is not a BPE model",
                    hint="supply tokenizer.json, which holds the same vocabulary",
                )
            elif number == 3:
                _read_normalizer(dict(_fields(value)), pieces)
    except (IndexError, KeyError, UnicodeDecodeError, AttributeError, TypeError, struct.error) as error:
        raise BadCheckpoint(f"tokenizer.model is damaged: {error!r}") from error
    if not pieces.tokens:
        raise BadCheckpoint("tokenizer.model holds no pieces")
    return pieces


def _read_normalizer(spec: dict[int, Any], pieces: Pieces) -> None:
    if spec.get(2):
        raise Refused(
            f"tokenizer.model rewrites its text ({spec.get(1)!r}), which is not read from this file",
            hint="supply tokenizer.json, which holds the same vocabulary",
        )
    pieces.add_space_prefix = bool(spec.get(3, 1))
    pieces.squeeze_spaces = bool(spec.get(4, 1))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one protobuf message: varints as int, 32-bit as float, the rest as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise IndexError(f"field of {size} bytes at {at} runs past the end")
            value, at = data[at : at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            (value,) = struct.unpack("<d" if kind == 1 else "<f", data[at : at + size])
            at += size
        else:
            raise IndexError(f"no field can begin with {key} at {at}")
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise IndexError(f"number at {at} does not end")
