"""Where we are with a request: the only state it has on the host."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.engine.blocks import chain, root
from headrace.engine.draft import Drafter
from headrace.engine.request import Request

if TYPE_CHECKING:
    from headrace.engine.grammar import Matcher


@dataclass(eq=False, slots=True)
class Sequence:
    """The scheduler's view of one request.

    tokens    what we know               owed      samples the device has not returned yet
    issued    positions handed over      computed  positions it has confirmed
    epoch     +1 whenever the blocks are taken away
    slot      its row in the device's tables, -1 while it waits
    fed       the device holds its newest token, so the next step needs none from us
    blocks    per layer group, one id per block of positions, VOID where out of the window
    passed    per layer group, how many leading blocks were given back already
    shown     how many blocks of each group the device has been told of
    longest   prompt and the longest possible answer together
    scored    tokens of the prompt whose log-probabilities were reported
    scheduled when it was first part of a step      told    whether an event has said so
    matcher   where the answer stands in its grammar, if it has one
    drafter   guesses its next tokens, if they may be guessed
    """

    request: Request
    order: int
    groups: int = 1
    tokens: list[int] = field(init=False)
    finished: str | None = None
    owed: int = 0
    issued: int = 0
    computed: int = 0
    epoch: int = 0
    slot: int = -1
    fed: bool = False
    shown: int = 0
    scored: int = 0
    cached: int = 0
    evictions: int = 0
    scheduled: float | None = None
    told: bool = False
    matcher: "Matcher | None" = None
    drafter: Drafter | None = None
    longest: int = field(init=False)
    blocks: list[list[int]] = field(init=False)
    passed: list[int] = field(init=False)
    keys: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = [*self.request.prompt, *self.request.emitted]
        self.longest = self.request.longest
        self.blocks = [[] for _ in range(self.groups)]
        self.passed = [0] * self.groups

    @property
    def length(self) -> int:
        return len(self.tokens) + self.owed

    @property
    def pending(self) -> int:
        """How far behind it is; not at all once everything it may make, or a guess at it, is on its way."""
        length = len(self.tokens) + self.owed
        return length - self.issued if self.issued < length < self.longest else 0

    def append(self, token: int) -> str | None:
        """Take a sampled token; why it is the last, if it is."""
        tokens, request = self.tokens, self.request
        tokens.append(token)
        if token in request.stop_ids and len(tokens) - len(request.prompt) >= request.params.min_tokens:
            self.finished = "stop"
        elif len(tokens) >= self.longest:
            self.finished = "length"
        return self.finished

    def name_blocks(self, size: int) -> list[bytes]:
        """Content names of all blocks that are full of known tokens."""
        while (n := len(self.keys)) < len(self.tokens) // size:
            parent = self.keys[-1] if n else root(self.request.salt)
            self.keys.append(chain(parent, self.tokens[n * size : (n + 1) * size]))
        return self.keys
