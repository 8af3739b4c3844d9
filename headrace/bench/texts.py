"""Texts to measure quality on, and the stretches of them that a model reads one at a time.

What is calibrated with is in optimize/calibrate.py.
"""

from functools import partial

from headrace.base.errors import Refused
from headrace.checkpoint import texts
from headrace.checkpoint.texts import GSM8K_HELD_OUT, HUMANEVAL_HELD_OUT, Known
from headrace.text.tokenizer import Tokenizer

KNOWN = {
    "gsm8k": Known(
        texts.GSM8K,
        partial(texts.questions, start=0, stop=GSM8K_HELD_OUT),
        "GSM8K (Cobbe et al. 2021), test split, items 0 to 659, MIT",
    ),
    "hamlet": Known(
        texts.shakespeare(
            "tragedies/hamlet", 189_481, "662f98ffb9fa50dea6174f29b5b4c47506dc42c81a920898f22cd1f778cca694"
        ),
        texts.play,
        "Shakespeare, Hamlet, public domain",
    ),
    "humaneval": Known(
        texts.HUMANEVAL,
        partial(texts.programs, start=0, stop=HUMANEVAL_HELD_OUT),
        "HumanEval (Chen et al. 2021), items 0 to 81, MIT",
    ),
    "lear": Known(
        texts.shakespeare(
            "tragedies/king-lear", 163_976, "7ab229fcd654940ecf070ef3c3e88906191bb9743dede6d4770c03c61db38024"
        ),
        texts.play,
        "Shakespeare, King Lear, public domain",
    ),
}


def read(text: str) -> str:
    """The text of a file, or of one of KNOWN; see `checkpoint.texts.read`."""
    return texts.read(text, KNOWN)


def cut(
    tokenizer: Tokenizer, text: str, name: str, tokens: int, windows: int | None, longest: int
) -> list[list[int]]:
    """The first `windows` stretches of a text that predict `tokens` tokens each; None: all that it has.

    Each is read alone and holds one token more, the first, which nothing predicts: the last of the stretch before. A
    text too short for one stretch is one. Raises Refused for a text of less than two tokens, or a stretch of more than
    `longest` predicted tokens.
    """
    if tokens > longest:
        raise Refused(
            f"windows of {tokens} tokens are asked for; this model can predict {longest} at once",
            param="tokens",
            hint=f"use --tokens {longest} or less",
        )
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise Refused(f"{name} has {len(ids)} tokens; at least 2 are needed to predict one", param="text")
    found = [ids[start : start + tokens + 1] for start in range(0, len(ids) - 1, tokens)]
    whole = [window for window in found if len(window) == tokens + 1] or found[:1]
    return whole[:windows]
