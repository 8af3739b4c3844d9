"""A tokenizer as the `tokenizer.*` keys of a GGUF file: the way back of vocabulary.from_gguf."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from headrace.base.errors import Refused
from headrace.text.byte_level import FAMILIES, build
from headrace.text.sentence_piece import BYTE, BYTE_PIECE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from headrace.text.tokenizer import Tokenizer
from headrace.text.vocabulary import ROLES

HINT = "export from the model's GGUF file if there is one, or serve the folder as it is"
PROBE = (
    "Hello  world! It's 1234567 o'clock, WE'RE late.\n\n\tdef f(x):\n        return x**2  # 3.14\r\n",
    "Größe, naïve, Ångström e\u0301; 你好世界 こんにちは 안녕 Привет שלום 🦙👍🏽 ½ ١٢٣ \u00a0\u2009end   ",
    " leading space, CamelCaseWords, snake_case, https://example.com/a?b=c&d=%20; <|im_start|>user\n<s>[INST] </s>",
)
"""Texts in which ways of splitting differ."""


def metadata_of(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """Key to value, for a model whose embedding has `rows` rows.

    Raises Refused for a vocabulary that the format has no words for: what the keys would say is compared on texts with
    what the tokenizer does.
    """
    state = json.loads(tokenizer.backend.to_str())
    if state["model"]["type"] != "BPE" or tokenizer.spelling == "other":
        kind = state["model"]["type"]
        raise Refused(f"a tokenizer of kind {kind} cannot be written as GGUF; byte-level BPE and SentencePiece BPE can",
                      hint=HINT)  # fmt: skip
    if tokenizer.vocab_size > rows:
        raise Refused(f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding only {rows} rows")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]]
    tokens = [tokenizer.id_to_piece(index) for index in range(rows)]
    made: dict[str, Any] = {}
    if tokenizer.spelling == "bytes":
        made |= {"model": "gpt2", "pre": _pre_tokenizer(tokenizer, state), "merges": merges}
    else:
        made |= {"model": "llama", "add_space_prefix": tokenizer.strip_left > 0}
        made["scores"] = _scores(tokens, merges)
    made["tokens"] = [f"[PAD{index}]" if token is None else token for index, token in enumerate(tokens)]
    made["token_type"] = _types(tokenizer, state, tokens)
    made |= _specials(tokenizer)
    keys = {f"tokenizer.ggml.{key}": value for key, value in made.items()}
    if tokenizer.template_source is not None:
        keys["tokenizer.chat_template"] = tokenizer.template_source
    _check(tokenizer, keys)
    return keys


def _pre_tokenizer(tokenizer: Tokenizer, state: Mapping[str, Any]) -> str:
    """The name, in `tokenizer.ggml.pre`, of how words are split."""
    found = _splits(state)
    wanted = (found, _has_nfc(state), bool(state["model"].get("ignore_merges")))
    near: list[tuple[int, str]] = []
    for name, family in FAMILIES.items():
        other = json.loads(build([], [], family).to_str())
        if _splits(other) == found:
            same = (found, family.nfc, family.whole_words) == wanted
            near.append((2 * same + (family.add_bos == _frames(tokenizer)[0]), name))
    if not near:
        raise Refused(f"GGUF has no name for how this tokenizer splits words: {found}", hint=HINT)
    best = max(points for points, _ in near)
    return next(name for points, name in near if points == best and name != "default")


def _splits(state: Mapping[str, Any]) -> list[str]:
    """Steps of the pre-tokenizer, as far as they decide where words end."""
    words = cast(dict[str, Any], state.get("pre_tokenizer") or {"type": "none"})
    steps = cast(list[dict[str, Any]], words["pretokenizers"]) if words["type"] == "Sequence" else [words]
    return [_step(step) for step in steps]


def _step(step: Mapping[str, Any]) -> str:
    kind = step["type"]
    if kind == "ByteLevel":
        return f"bytes, prefix {step.get('add_prefix_space')}, GPT-2's words {step.get('use_regex', True)}"
    if kind == "Split":
        pattern = step["pattern"]
        return f"{step['behavior']} {pattern.get('Regex', pattern)!r}, inverted {step.get('invert', False)}"
    return f"digits {step['individual_digits']}" if kind == "Digits" else str(kind)


def _has_nfc(state: Mapping[str, Any]) -> bool:
    normalizer = cast(dict[str, Any], state.get("normalizer") or {})
    steps = cast(list[dict[str, Any]], normalizer.get("normalizers", [normalizer]))
    return any(step.get("type") == "NFC" for step in steps)


def _scores(tokens: Sequence[str | None], merges: Sequence[str]) -> list[float]:
    """Pieces that are joined earlier score higher; what is never joined comes last."""
    rank: dict[str, int] = {}
    for number, merge in enumerate(merges):
        left, right = merge.split(" ", 1)
        rank.setdefault(left + right, number)
    return [-float(rank.get(token or "", len(merges))) for token in tokens]


def _types(tokenizer: Tokenizer, state: Mapping[str, Any], tokens: Sequence[str | None]) -> list[int]:
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in state["added_tokens"]}
    unknown = state["model"].get("unk_token")
    fallback = tokenizer.spelling == "pieces" and state["model"].get("byte_fallback")
    types: list[int] = []
    for index, token in enumerate(tokens):
        if token is None:
            types.append(UNUSED)
        elif unknown is not None and token == unknown and tokenizer.spelling == "pieces":
            types.append(UNKNOWN)
        elif fallback and BYTE_PIECE.fullmatch(token):
            types.append(BYTE)
        else:
            types.append(added.get(index, NORMAL))
    return types


def _frames(tokenizer: Tokenizer) -> tuple[bool, bool]:
    """Whether bos and eos are put around a text."""
    ids = tokenizer.encode("", add_special_tokens=True)
    first = bool(ids) and ids[0] == tokenizer.bos_id
    return first, len(ids) > first and ids[-1] == tokenizer.eos_id


def _specials(tokenizer: Tokenizer) -> dict[str, Any]:
    first, last = _frames(tokenizer)
    made: dict[str, Any] = {"add_bos_token": first, "add_eos_token": last}
    for role, key in ROLES.items():
        text = tokenizer.special_tokens.get(role)
        if text is not None and (index := tokenizer.piece_to_id(text)) is not None:
            made[f"{key}_token_id"] = index
    ends = sorted(tokenizer.eos_ids - {made.get("eos_token_id")})
    if "eos_token_id" not in made and ends:
        made["eos_token_id"] = ends.pop(0)
    # There are two more places; further endings are known by their names to whoever reads the file.
    made |= {f"{key}_token_id": index for key, index in zip(("eot", "eom"), ends, strict=False)}
    return made


def _check(tokenizer: Tokenizer, keys: Mapping[str, Any]) -> None:
    again = Tokenizer.from_gguf(keys)
    for text in PROBE:
        ids = tokenizer.encode(text)
        if (found := again.encode(text)) != ids or again.decode(found) != tokenizer.decode(ids):
            at = next((n for n, (a, b) in enumerate(zip(ids, found, strict=False)) if a != b), 0)
            raise Refused(
                f"GGUF cannot say how this tokenizer cuts {tokenizer.decode(ids[at : at + 5])!r} in {text[:30]!r}...",
                hint=HINT,
            )
