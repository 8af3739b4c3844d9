"""Text to token ids and back, whatever kind of checkpoint the vocabulary comes from."""

import codecs
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tokenizers

from headrace.base.errors import Refused
from headrace.text import byte_level, sentence_piece, vocabulary
from headrace.text.formats import Formats, detect
from headrace.text.template import ChatTemplate
from headrace.text.vocabulary import Vocabulary

# Names under which models end a turn; they end generation where they are special tokens.
ENDINGS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|end_of_turn|>",
    "<end_of_utterance>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "[EOT]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip
NO_TEMPLATE = "give one with --chat-template FILE, or send a plain prompt instead of messages"

Spelling = Literal["bytes", "pieces", "other"]


class Tokenizer:
    """A vocabulary with its special tokens and, if the checkpoint has one, its chat template.

    `special_tokens` maps roles ("bos_token", "eos_token", "unk_token", ...) to texts. `spelling` says how tokens
    spell text: "bytes" (byte-level), "pieces" (SentencePiece), or "other" (known to the library only). `texts`: what
    those tokens add to a text that are whole characters, as far as `token_bytes` has been asked.
    """

    def __init__(self, vocab: Vocabulary):
        self.backend = vocab.backend
        self.special_tokens = dict(vocab.special_tokens)
        self.template_source = vocab.template_source
        added = self.backend.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        ends = {*vocab.eos_ids, *([] if self.eos_id is None else [self.eos_id])}
        if vocab.guess_endings:
            ends |= _endings({token.content: index for index, token in added.items() if token.special})
        self.eos_ids = frozenset(ends)
        self.spelling, self.strip_left = _spelling(self.backend)
        self._bytes: dict[int, bytes] = {}
        self.texts: dict[int, str] = {}

    # -- where it comes from ----------------------------------------------------------------------

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """From tokenizer.json or tokenizer.model and the small JSON files beside it.

        Raises Refused when neither is there, BadCheckpoint when a file cannot be read.
        """
        return cls(vocabulary.from_folder(Path(path)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """From the `tokenizer.*` keys of a GGUF file.

        Raises BadCheckpoint when keys are missing or do not fit, Refused for a kind of vocabulary not known.
        """
        return cls(vocabulary.from_gguf(metadata))

    # -- text to ids ------------------------------------------------------------------------------

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`, in which the text of a special token is that token.

        Raises Refused for text that is no valid Unicode.
        """
        try:
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            raise _not_text(text) from error

    def word_ids(self, word: str) -> list[list[int]]:
        """The ways in which `word` can come out of the model, for `bad_words`: at a start, and after a space.

        Raises Refused for a word of nothing but white space.
        """
        bare = word.lstrip()
        if not bare:
            raise Refused(f"a word must be a string that is not empty, not {word!r}", param="bad_words")
        ways = [self.encode(bare, add_special_tokens=False)]
        line = self.encode("\n", add_special_tokens=False)
        after_line = self.encode("\n" + bare, add_special_tokens=False)
        if self.spelling == "pieces" and after_line[: len(line)] == line:
            ways.append(after_line[len(line) :])  # these vocabularies put a space before every text
        ways.append(self.encode(" " + bare, add_special_tokens=False))
        ways = [way for n, way in enumerate(ways) if way and way not in ways[:n]]
        # A way that ends with another one is excluded together with that one.
        return [a for a in ways if not any(a != b and a[-len(b) :] == b for b in ways)]

    # -- ids to text ------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD, ids beyond the vocabulary nothing.

        SentencePiece vocabularies decode a broken run of byte pieces as SentencePiece itself does, keeping the
        good characters in it. Raises Refused for ids that are no whole numbers from 0 on.
        """
        if self.spelling == "other":
            try:
                return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
            except (OverflowError, TypeError) as error:
                raise Refused(f"token ids must be whole numbers from 0 on: {error}") from error
        hidden: frozenset[int] = self.special_ids if skip_special_tokens else frozenset()
        raw = b"".join([self.token_bytes(index) for index in ids if index not in hidden])
        text = to_text(self.decoder(), raw, final=True)
        for _ in range(self.strip_left):
            text = text.removeprefix(" ")
        return text

    def decoder(self) -> codecs.IncrementalDecoder:
        """A fresh decoder from the bytes of tokens to text, to be used through `to_text`."""
        errors = "surrogateescape" if self.spelling == "pieces" else "replace"
        return codecs.getincrementaldecoder("utf-8")(errors)

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token adds to a text, also where they are only part of a character."""
        known = self._bytes.get(index)
        if known is None:
            piece = self.id_to_piece(index) or ""
            known = (
                byte_level.spelled_bytes(piece)
                if self.spelling == "bytes"
                else sentence_piece.piece_bytes(piece)
            )
            self._bytes[index] = known
            with suppress(UnicodeDecodeError):
                self.texts[index] = known.decode()
        return known

    def id_to_piece(self, index: int) -> str | None:
        """The token as the vocabulary spells it; None beyond it. Raises Refused for what is no id."""
        try:
            return self.backend.id_to_token(index)
        except (OverflowError, TypeError) as error:
            raise Refused(f"token ids must be whole numbers from 0 on, not {index!r}") from error

    def piece_to_id(self, piece: str) -> int | None:
        """The id of a token given as the vocabulary spells it."""
        return self.backend.token_to_id(piece)

    # -- about it ---------------------------------------------------------------------------------

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id. The model's own vocabulary may be padded beyond it."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def longest(self) -> int | None:
        """Bytes of the longest token, so that a text has at least so many times fewer tokens than bytes.

        None where a token may stand for text of any length.
        """
        if self.spelling == "other":
            return None
        vocab = self.backend.get_vocab(with_added_tokens=True)
        return max((len(piece.encode("utf-8", "replace")) for piece in vocab), default=1)

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The checkpoint's chat template, or None. Raises Refused when it does not compile."""
        if self.template_source is None:
            return None
        return ChatTemplate(self.template_source, self.special_tokens)

    def chat_template(self) -> ChatTemplate:
        """The template to render messages with. Raises Refused when there is none, or when it does not compile."""
        if self.template is None:
            raise Refused("the model has no chat template", param="messages", hint=NO_TEMPLATE)
        return self.template

    @cached_property
    def formats(self) -> Formats:
        """How the model writes thoughts and calls of tools, found from its template; nothing without one."""
        return Formats() if self.template is None else detect(self.template)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex of everything that decides how text becomes ids."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def _id_of(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        return None if token is None else self.backend.token_to_id(token)


def to_text(decoder: codecs.IncrementalDecoder, raw: bytes, final: bool = False) -> str:
    """What a `Tokenizer.decoder` can say for certain after `raw`."""
    text = decoder.decode(raw, final)
    if text.isascii() or decoder.errors == "replace":
        return text
    return "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in text)


def _endings(special: Mapping[str, int]) -> set[int]:
    names = {name for name in ENDINGS if name in special}
    if "<|return|>" in names:
        names.discard("<|end|>")  # there it ends one message of an answer, not the answer
    return {special[name] for name in names}


def _spelling(backend: tokenizers.Tokenizer) -> tuple[Spelling, int]:
    """How tokens spell text, and how many leading spaces the text loses."""
    if backend.decoder is None:
        return "other", 0
    steps = json.loads(backend.decoder.__getstate__())
    steps = steps["decoders"] if steps["type"] == "Sequence" else [steps]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return "bytes", 0
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and steps[0]["pattern"] == {
        "String": sentence_piece.SPACE
    }:
        rest = steps[3:]
        if not rest:
            return "pieces", 0
        if kinds[3:] == ["Strip"] and rest[0]["content"] == " " and not rest[0]["stop"]:
            return "pieces", rest[0]["start"]
    return "other", 0


def _not_text(text: object) -> Refused:
    """Why it cannot be encoded."""
    if not isinstance(text, str):
        return Refused(f"text is {type(text).__name__}, not a string", param="prompt")
    return Refused(
        "text holds half of a surrogate pair, which is no character",
        param="prompt",
        hint="send text that is valid Unicode",
    )
