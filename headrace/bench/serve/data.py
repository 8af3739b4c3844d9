"""What is asked: synthetic prompts, conversations, files of prompts, traces; the same for the same seed."""

from collections.abc import Iterator
from itertools import count, pairwise
from math import isfinite
from random import Random
from typing import Any, Literal

import msgspec

from headrace.base.errors import Refused
from headrace.base.text_file import read_bytes
from headrace.bench.serve import lengths
from headrace.bench.serve.arrivals import Load
from headrace.bench.serve.client import Conversation, Turn

# Short common words: nearly every tokenizer has each of them, with the space before it, as one token.
_COMMON = (
    "the of and to in is that it was for on are as with his they at be this from have or by one had not but what all"
    " were when we there can an your which their said if do will each about how up out them then she many some so"
    " these would other into has more her two like him see time could no make than first been its who now people my"
    " made over did down only way find use may water long little very after words called just where most know get"
    " through back much before go good new write our used me man too any day same right look think also around"
    " another came come work three word must because does part even place well such here take why things help put"
    " years different away again off went old number great tell men say small every found still between name should"
    " home big give air line set own under read last never us left end along while might next sound below saw"
    " something thought both few those always looked show large often together asked house world going want school"
    " important until form food keep children feet land side without boy once animals life enough took four head"
    " above kind began almost live page got earth need far hand high year mother light parts country father let night"
    " following picture being study second eyes soon times story boys since white days ever paper hard near"
)
WORDS: list[str] = list(map(str, _COMMON.split()))


class Synthetic(msgspec.Struct, frozen=True, kw_only=True, tag="synthetic"):
    """Prompts of random words.

    tokens_in, tokens_out   lengths as lengths.py reads them
    prefix, groups          tokens that prompts of a group begin with alike, and how many groups there are
    turns, think            requests per conversation, and seconds between an answer and what is said to it
    words, per_word         words to take, and how many tokens one of them is
    """

    tokens_in: str = "128"
    tokens_out: str = "128"
    prefix: int = 0
    groups: int = 1
    turns: str = "1"
    think: str = "0"
    words: list[str] = msgspec.field(default_factory=lambda: WORDS)
    per_word: float = 1.0


class Prompts(msgspec.Struct, frozen=True, kw_only=True, tag="prompts"):
    """Prompts from a file; `tokens_out` replaces what it says of answers. `kind` auto: as its first entry looks."""

    path: str
    kind: Literal["auto", "jsonl", "sharegpt", "trace"] = "auto"
    tokens_out: str | None = None
    think: str = "0"
    words: list[str] = msgspec.field(default_factory=lambda: WORDS)
    per_word: float = 1.0


Source = Synthetic | Prompts


def conversations(source: Source, seed: int) -> Iterator[Conversation]:
    """Conversations without end: a file begins again when it is over, in another order."""
    match source:
        case Synthetic():
            return _synthetic(source, seed)
        case Prompts(kind="trace"):
            return iter([conversation for _, conversation in trace(source, seed)])
        case Prompts():
            return _again(_read(source, seed), seed)


# -- synthetic ----------------------------------------------------------------------------------------------------


def _synthetic(source: Synthetic, seed: int) -> Iterator[Conversation]:
    tokens_in = lengths.parse(source.tokens_in, "tokens-in")
    tokens_out = lengths.parse(source.tokens_out, "tokens-out")
    turns, think = lengths.parse(source.turns, "turns"), lengths.parse(source.think, "think")
    heads = [text(source, source.prefix, Random(f"head {seed} {n}")) for n in range(max(1, source.groups))]
    for number in count():
        random = Random(f"prompt {seed} {number}")
        conversation: list[Turn] = []
        for turn in range(lengths.whole(turns, random)):
            own = text(
                source, max(1, lengths.whole(tokens_in, random) - (0 if turn else source.prefix)), random
            )
            prompt = f"{random.choice(heads)} {own}" if source.prefix and not turn else own
            pause = max(0.0, think(random)) if turn else 0.0
            conversation.append(Turn(prompt, lengths.whole(tokens_out, random), pause))
        yield conversation


def text(source: Source, tokens: int, random: Random) -> str:
    """Random words that are so many tokens, as far as words can be; at least one, for a prompt is never empty."""
    return " ".join(random.choices(source.words, k=max(1, round(tokens / source.per_word))))


# -- files --------------------------------------------------------------------------------------------------------


def _again(found: list[Conversation], seed: int) -> Iterator[Conversation]:
    for round_ in count():
        order = list(range(len(found)))
        if round_:
            Random(f"order {seed} {round_}").shuffle(order)
        for n in order:
            yield found[n]


def _read(source: Prompts, seed: int) -> list[Conversation]:
    random = Random(f"file {seed}")
    draw = lengths.parse(source.tokens_out, "tokens-out") if source.tokens_out else None
    think = lengths.parse(source.think, "think")

    def most(own: int | None) -> int | None:
        return lengths.whole(draw, random) if draw else own

    items, kind = _entries(source), source.kind
    if kind == "auto":
        talks = bool(items) and isinstance(items[0], dict) and "conversations" in items[0]
        kind = "sharegpt" if talks else "jsonl"
    read = _sharegpt if kind == "sharegpt" else _line
    found = [read(item, most, lambda: max(0.0, think(random))) for item in items]
    usable = [conversation for conversation in found if conversation]
    if not usable:
        raise Refused(f"{source.path} has no prompts of the kind {kind}", param="data")
    return usable


def _entries(source: Prompts) -> list[Any]:
    """The file's objects: one per line, or one list. Raises Refused."""
    raw = read_bytes(source.path, "data")
    try:
        if raw.lstrip().startswith(b"["):
            return msgspec.json.decode(raw, type=list[Any])
        return [msgspec.json.decode(line) for line in raw.splitlines() if line.strip()]
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise Refused(f"{source.path} is not JSON: {fault}", param="data") from fault


def _line(item: Any, most: Any, think: Any) -> Conversation:
    """{"prompt": ...} or {"messages": [...]} with `max_tokens` or `output_tokens`; or a string."""
    if isinstance(item, str):
        return [Turn(item, most(None))]
    if not isinstance(item, dict):
        return []
    own = item.get("max_tokens") or item.get("output_tokens") or item.get("output_length")
    prompt = item.get("prompt") or item.get("messages") or item.get("text")
    if not (prompt and isinstance(prompt, str | list)):
        return []
    return [Turn(prompt, most(own if isinstance(own, int) else None))]


def _sharegpt(item: Any, most: Any, think: Any) -> Conversation:
    """{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}, ...]}: a turn for each of a person's.

    An answer may be as long as the one in the file, at about four characters a token.
    """
    said = item.get("conversations") if isinstance(item, dict) else None
    said = [part for part in said if isinstance(part, dict)] if isinstance(said, list) else []
    turns: list[Turn] = []
    for person, model in pairwise(said):
        if person.get("from") in ("human", "user") and model.get("from") in ("gpt", "assistant", "chatgpt"):
            text, answer = person.get("value"), str(model.get("value") or "")
            if isinstance(text, str) and text:
                turns.append(Turn(text, most(max(1, len(answer) // 4)), think() if turns else 0.0))
    return turns


BLOCK = 512
"""Tokens that one of a trace's `hash_ids` stands for."""


def replayed(source: Prompts, load: Load, seed: int) -> list[tuple[float, Conversation]]:
    """What of a trace is sent and when: a rate speeds it up."""
    scale = 1.0 if load.rate == float("inf") else load.rate
    found = [(at / scale, one) for at, one in trace(source, seed)]
    if load.duration is not None:
        found = [(at, one) for at, one in found if at < load.duration]
    return found[: load.requests]


def trace(source: Prompts, seed: int) -> list[tuple[float, Conversation]]:
    """When requests came and how long they were, from a trace: JSON lines with `timestamp` (whole numbers:
    milliseconds), `input_length`, `output_length`, and `hash_ids` where prompts begin alike.

    Raises Refused.
    """
    draw = lengths.parse(source.tokens_out, "tokens-out") if source.tokens_out else None
    random = Random(f"trace {seed}")
    found: list[tuple[float, Conversation]] = []
    for n, item in enumerate(_entries(source)):
        try:
            stamp, tokens_in = item["timestamp"], int(item["input_length"])
            at = float(stamp) / (1000 if isinstance(stamp, int) else 1)
            if not isfinite(at) or not 0 <= tokens_in <= lengths.MOST:
                raise ValueError(item)
            tokens_out = lengths.whole(draw, random) if draw else int(item["output_length"])
            shared = [int(id) for id in item.get("hash_ids", ())]
        except (KeyError, TypeError, ValueError) as fault:
            raise Refused(
                f"{source.path}, entry {n + 1}: expected timestamp, input_length and output_length",
                param="replay",
            ) from fault
        whole = [text(source, BLOCK, Random(f"block {id}")) for id in shared[: tokens_in // BLOCK]]
        rest = tokens_in - BLOCK * len(whole)
        parts = [*whole, text(source, rest, Random(f"rest {seed} {n}"))] if rest > 0 else whole
        found.append((at, [Turn(" ".join(parts), max(1, tokens_out))]))
    if not found:
        raise Refused(f"{source.path} has no entries", param="replay")
    begin = min(at for at, _ in found)
    return sorted(((at - begin, conversation) for at, conversation in found), key=lambda one: one[0])
