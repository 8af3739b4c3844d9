"""What a client noted of one request: moments and counts, no judgement."""

from typing import Literal

import msgspec

Outcome = Literal["ok", "refused", "error", "cancelled", "unfinished"]
"""refused: HTTP 429 or 503. cancelled: by us, on purpose. unfinished: not over when the run was."""


class Sample(msgspec.Struct, array_like=True):
    """One request. Moments are seconds from the start of the run; None for what did not happen.

    scheduled   when it was to be sent          sent    when it was (the latency of a late client is in between)
    first       the first chunk with tokens     last    the latest one       opened  the first chunk of any kind
    chunks      seconds between chunks with tokens, the first of them left out
    tokens      tokens in each chunk from the first on; empty: one in each
    counted     whether the server said how many tokens it generated; else chunks were counted
    """

    scheduled: float
    sent: float
    ended: float = 0.0
    opened: float | None = None
    first: float | None = None
    last: float | None = None
    chunks: list[float] = []
    tokens: list[int] = []
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    counted: bool = False
    outcome: Outcome = "error"
    status: int = 0
    reason: str = ""
    turn: int = 0
