"""Cuts a text into the stretches of tokens that a model reads one at a time."""

from headrace.base.errors import Refused
from headrace.text.tokenizer import Tokenizer


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
