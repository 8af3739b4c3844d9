"""Read a vocabulary and its special tokens from a checkpoint folder or from GGUF metadata."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import AddedToken, processors

from headrace.base.errors import BadCheckpoint, Refused
from headrace.base.json_file import read_json
from headrace.text import byte_level, sentence_piece

ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""Roles of special tokens, and what the keys of GGUF call them."""


@dataclass(frozen=True)
class Vocabulary:
    """What a checkpoint says about its tokens.

    `special_tokens` maps roles ("bos_token", "eos_token", "unk_token", ...) to texts. `guess_endings` asks for
    special tokens that end a turn by their usual names, where the checkpoint does not list all endings.
    """

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str] = field(default_factory=dict[str, str])
    eos_ids: Sequence[int] = ()
    guess_endings: bool = True
    template_source: str | None = None


def from_folder(folder: Path) -> Vocabulary:
    """Raises Refused when there is no tokenizer file, BadCheckpoint when one cannot be read."""
    config = _read_json(folder / "tokenizer_config.json")
    special = _special_tokens(config, _read_json(folder / "special_tokens_map.json"))
    if (file := folder / "tokenizer.json").is_file():
        backend = _load(file)
        _add_missing(backend, config.get("added_tokens_decoder"))
    elif (file := folder / "tokenizer.model").is_file():
        pieces = sentence_piece.read_model(file.read_bytes())
        backend = sentence_piece.build(pieces)
        _add_pieces(backend, pieces.tokens, pieces.types)
        config = {"add_bos_token": True, "add_eos_token": False} | config
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | special
        special = {role: text for role, text in special.items() if text in pieces.tokens}
    else:
        raise Refused(
            f"no tokenizer.json and no tokenizer.model in {folder}",
            hint="save the tokenizer into that folder (save_pretrained writes tokenizer.json)",
        )
    _frame(backend, special, config.get("add_bos_token"), config.get("add_eos_token"))
    generation = _read_json(folder / "generation_config.json").get("eos_token_id")
    declared = (
        generation if generation is not None else _read_json(folder / "config.json").get("eos_token_id")
    )
    return Vocabulary(
        backend,
        special_tokens=special,
        eos_ids=_as_ids(declared),
        guess_endings=generation is None,
        template_source=_folder_template(folder, config),
    )


def from_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """Raises BadCheckpoint when keys are missing or do not fit, Refused for a kind of vocabulary not known."""
    kind = _get(metadata, "model", str)
    tokens = _get_list(metadata, "tokens", str)
    if not tokens:
        raise BadCheckpoint("tokenizer.ggml.tokens is empty")
    types = _get_list(metadata, "token_type", int, default=[1] * len(tokens))
    if len(types) != len(tokens):
        raise BadCheckpoint(f"{len(tokens)} tokens but {len(types)} entries in tokenizer.ggml.token_type")
    if kind == "gpt2":
        family = byte_level.family(_get(metadata, "pre", str, "default"))
        backend = byte_level.build(tokens, _get_list(metadata, "merges", str), family)
        add_bos = family.add_bos
    elif kind == "llama":
        prefix = bool(_get(metadata, "add_space_prefix", bool, True))
        scores = _get_list(metadata, "scores", float, default=[-float(n) for n in range(len(tokens))])
        backend = sentence_piece.build(sentence_piece.Pieces(tokens, scores, types, prefix))
        add_bos = True
    else:
        raise Refused(
            f"the GGUF file has a tokenizer of kind {kind!r}; known: 'gpt2' (byte-level), "
            "'llama' (SentencePiece)",
            hint="use the original checkpoint folder with its tokenizer.json",
        )
    _add_pieces(backend, tokens, types)
    special: dict[str, str] = {}
    for role, key in ROLES.items():
        if (index := _get_id(metadata, key, len(tokens))) is not None:
            special[role] = tokens[index]
    _frame(
        backend,
        special,
        bool(_get(metadata, "add_bos_token", bool, add_bos)),
        bool(_get(metadata, "add_eos_token", bool, False)),
    )
    ends = [_get_id(metadata, role, len(tokens)) for role in ("eot", "eom")]
    return Vocabulary(
        backend,
        special_tokens=special,
        eos_ids=[index for index in ends if index is not None],
        template_source=metadata.get("tokenizer.chat_template"),
    )


# -- reading folders --------------------------------------------------------------------------------


def _load(file: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for every fault in the file
        raise BadCheckpoint(f"{file} cannot be read: {error}") from error
    backend.no_truncation()  # some files carry the settings of the training run
    backend.no_padding()
    return backend


def _read_json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _special_tokens(*files: Mapping[str, Any]) -> dict[str, str]:
    """Role to text; the first file that names a role wins. A token is a text or {"content": text}."""
    found: dict[str, str] = {}
    for file in files:
        for role, token in file.items():
            text: object = cast(dict[str, Any], token).get("content") if isinstance(token, dict) else token
            if role.endswith("_token") and isinstance(text, str):
                found.setdefault(role, text)
    return found


def _folder_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else chat_template.json, else the entry in the config; of a list "default"."""
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    template = _read_json(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(template, list):
        entries = [
            cast(dict[str, Any], entry) for entry in cast(list[Any], template) if isinstance(entry, dict)
        ]
        template = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _add_missing(backend: tokenizers.Tokenizer, declared: object) -> None:
    """Tokens of `added_tokens_decoder` that tokenizer.json lacks, where they get the id they are declared with."""
    if not isinstance(declared, dict):
        return
    tokens = cast(dict[str, Any], declared)
    for number in sorted(tokens, key=lambda digits: digits.zfill(12)):
        token: dict[str, Any] = tokens[number] if isinstance(tokens[number], dict) else {}
        text = token.get("content")
        if not isinstance(text, str) or not text or not number.isdecimal():
            raise BadCheckpoint(f"added_tokens_decoder[{number!r}] in tokenizer_config.json has no content")
        known = backend.token_to_id(text)
        if known == int(number) or (known is None and int(number) == backend.get_vocab_size()):
            cast(Any, backend).add_tokens([_added(text, bool(token.get("special")))])


def _as_ids(value: object) -> list[int]:
    if value is None:
        return []
    ids: list[Any] = cast(list[Any], value) if isinstance(value, list) else [value]
    if not all(isinstance(index, int) and index >= 0 for index in ids):
        raise BadCheckpoint(f"eos_token_id should be a token id or a list of them, not {value!r}")
    return ids


# -- special tokens ---------------------------------------------------------------------------------


def _added(text: str, special: bool) -> AddedToken:
    return AddedToken(text, normalized=False, special=special)


def _add_pieces(backend: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Control tokens become special tokens; user-defined ones are taken whole but shown."""
    library = cast(Any, backend)  # its types leave the element type of these lists out
    typed = [(t, k) for t, k in zip(tokens, types, strict=True) if t]
    special = (sentence_piece.CONTROL, sentence_piece.UNKNOWN)
    library.add_special_tokens([_added(token, True) for token, kind in typed if kind in special])
    library.add_tokens([_added(token, False) for token, kind in typed if kind == sentence_piece.USER_DEFINED])


def _frame(backend: tokenizers.Tokenizer, special: Mapping[str, str], bos: object, eos: object) -> None:
    """Make `backend` put bos and eos around a text as `bos` and `eos` say; None leaves it as it is."""
    if bos is None and eos is None:
        return
    ids = {role: backend.token_to_id(special[role]) for role in ("bos_token", "eos_token") if role in special}
    now = backend.encode("", add_special_tokens=True).ids
    first = bool(now) and now[0] == ids.get("bos_token") if bos is None else bool(bos)
    last = bool(now) and now[-1] == ids.get("eos_token") and len(now) > first if eos is None else bool(eos)
    used = ["bos_token"] * first + ["eos_token"] * last
    used = [role for role in used if ids.get(role) is not None]
    if [ids[role] for role in used] == now:
        return
    parts = [special[role] for role in used]
    body = ["$A"] if "bos_token" not in used else [parts[0], "$A"]
    body += [parts[-1]] if "eos_token" in used else []
    backend.post_processor = processors.TemplateProcessing(
        single=body, special_tokens=[(special[role], ids[role]) for role in used]
    )


# -- reading GGUF metadata --------------------------------------------------------------------------


def _get(metadata: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, kind):
        what = "missing" if value is None else f"{value!r}, not a {kind.__name__}"
        raise BadCheckpoint(f"tokenizer.ggml.{key} is {what}")
    return value


def _get_list(
    metadata: Mapping[str, Any], key: str, kind: type, default: list[Any] | None = None
) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    listed = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    value = list(cast(Iterable[Any], value)) if listed else None
    kinds = (kind, int) if kind is float else kind
    if value is None or not all(issubclass(found, kinds) for found in set(map(type, value))):
        raise BadCheckpoint(f"tokenizer.ggml.{key} is missing or no list of {kind.__name__}")
    return value


def _get_id(metadata: Mapping[str, Any], role: str, size: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{role}_token_id")
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < size:
        raise BadCheckpoint(f"tokenizer.ggml.{role}_token_id is {value!r}; there are {size} tokens")
    return value
