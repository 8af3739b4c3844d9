"""What front processes and the engine process say to each other: msgspec structs as MessagePack, never pickle."""

from pathlib import Path
from typing import Any

import msgspec

from headrace.base import errors
from headrace.base.errors import Broken, Fault
from headrace.engine.request import Event, Request, SamplingParams

CANNOT_START = 78
"""Exit code of an engine for what another start will not change (EX_CONFIG of sysexits.h); it has said why."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a front needs to know of the engine.

    served      names under which clients may ask for the model; the first is its own
    tokenizer   a folder, or a file that words.py wrote, to read the tokenizer from; None: token ids only
    template    a chat template that replaces the tokenizer's own
    rows        most requests in one step       tokens   most tokens in one step
    kv_tokens   what the KV cache can hold      memory   where bytes went, by name
    step_seconds    how long a step of one token took when the engine had started; 0 if nobody measured
    """

    model: str
    served: tuple[str, ...]
    path: str
    created: int
    max_len: int
    vocab: int
    eos_ids: frozenset[int]
    defaults: SamplingParams
    kv_blocks: int
    block: int
    rows: int
    tokens: int
    kv_tokens: int
    plan: str
    memory: dict[str, int]
    device: str
    dtype: str
    kv_dtype: str
    tokenizer: str | None = None
    template: str | None = None
    step_seconds: float = 0.0


class Stats(msgspec.Struct, array_like=True):
    """The engine after a step: at most every 50 ms, and always after the last step before it idles.

    running, waiting    requests              kv_used     part of the KV blocks held by requests, 0 to 1
    prompt_tokens ... busy_seconds            totals since the engine process started
    step_rows, step_tokens, step_seconds      of the last step
    rows_total      rows of all steps together
    drafts, drafted_tokens, accepted_tokens   how often tokens were guessed, how many, and how many were right; totals
    accepted_at     of these, how many stood first in their row, second ... sixteenth
    sizes           how many steps computed up to 1, 8, 16, 32 ... 16384 and more tokens, each bucket for itself, and
                    last all their tokens together: what engine/tally.py counts
    """

    running: int = 0
    waiting: int = 0
    kv_used: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated: int = 0
    evictions: int = 0
    recomputed_tokens: int = 0
    steps: int = 0
    busy_seconds: float = 0.0
    step_rows: int = 0
    step_tokens: int = 0
    step_seconds: float = 0.0
    faults: int = 0
    rows_total: int = 0
    sizes: list[int] = []
    drafts: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    accepted_at: list[int] = []


# -- to the engine ------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """A front that wants to be told the facts. `boot` differs for each start of a front process."""

    boot: int


class Add(msgspec.Struct, frozen=True, tag="add"):
    requests: list[Request]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    ids: list[str]


class Relay(msgspec.Struct, frozen=True, tag="relay"):
    """What a front asks the others (`to` is -1), or answers one of them; the engine hands it on as it is.

    number  of the question, for whoever asked it
    """

    front: int
    to: int
    number: int
    said: Any


ToEngine = Hello | Add | Cancel | Relay

# -- from the engine ----------------------------------------------------------------------------------------------


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """What a starting engine is doing, and which part of it is done, 0 to 1.

    tokenizer   as in Facts, told as soon as it is known
    """

    doing: str
    part: float
    tokenizer: str | None = None


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The engine takes requests. `boot` is that of the Hello it answers."""

    facts: Facts
    boot: int


class Refusal(msgspec.Struct, frozen=True):
    """A Fault on its way: the name of its class in base/errors.py and its fields."""

    id: str
    kind: str
    message: str
    param: str | None = None
    hint: str = ""

    @classmethod
    def of(cls, id: str, fault: Fault) -> "Refusal":
        return cls(id, type(fault).__name__, fault.message, fault.param, fault.hint)

    def fault(self) -> Fault:
        """The same fault on this side."""
        kind = vars(errors).get(self.kind, Broken)
        return kind(self.message, param=self.param, hint=self.hint)


class Events(msgspec.Struct, frozen=True, tag="events"):
    """All that a step gave to the requests of one front."""

    step: int
    events: list[Event]
    stats: Stats | None = None


class Refusals(msgspec.Struct, frozen=True, tag="refusals"):
    """Requests that the engine did not take."""

    refusals: list[Refusal]


class Pulse(msgspec.Struct, frozen=True, tag="pulse"):
    """The process lives. Sent four times a second by a thread of its own, so that it comes during a step, too.

    step    steps that have ended so far      busy    whether there is work     cpu     seconds of processor used
    rows    what the step that runs is made of: (id, first position, last position + 1)
    """

    step: int
    busy: bool
    cpu: float
    rows: list[tuple[str, int, int]]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The engine could not start, for a reason that another start will not change."""

    refusal: Refusal


Seldom = Loading | Ready | Refusals | Pulse | Failed | Relay
FromEngine = Seldom | Events

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode


def address(folder: str | Path, front: int) -> str:
    """Where front number `front` listens. The folder is private to the user who runs the server."""
    return f"ipc://{folder}/front-{front}.sock"
