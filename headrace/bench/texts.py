"""Texts to measure quality on: files, or well-known ones. What is calibrated with is in optimize/calibrate.py."""

from functools import partial

from headrace.checkpoint import texts
from headrace.checkpoint.texts import GSM8K_HELD_OUT, HUMANEVAL_HELD_OUT, Known

KNOWN = {
    "gsm8k": Known(
        texts.GSM8K,
        partial(texts.questions, start=0, stop=GSM8K_HELD_OUT),
        "GSM8K (Cobbe et al. 2021), test split, items 0 to 659, MIT",
    ),
    "hamlet": Known(
        texts.shakespeare(
            "tragedies/hamlet",
            189_481,
            "662f98ffb9fa50dea6174f29b5b4c47506dc42c81a920898f22cd1f778cca694",
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
            "tragedies/king-lear",
            163_976,
            "7ab229fcd654940ecf070ef3c3e88906191bb9743dede6d4770c03c61db38024",
        ),
        texts.play,
        "Shakespeare, King Lear, public domain",
    ),
}


def read(text: str) -> str:
    """The text of a file, or of one of KNOWN; see `checkpoint.texts.read`."""
    return texts.read(text, KNOWN)
