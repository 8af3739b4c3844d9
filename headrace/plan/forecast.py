"""From a setup and a workload to what users will see: time to the first token, per token, throughput, cost.

The steady state of continuous batching: R requests run at any time, each at another point of its life; when one is
done the next one's prompt is computed within the steps of the others. Formulas are in docs/plan.md.
"""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from headrace.plan.cost import Parts, Setup, Work, parts
from headrace.plan.memory import Memory
from headrace.plan.replay import visible
from headrace.plan.workload import Workload

TAIL = 4.6
"""ln 100: how much longer than the mean the 99th percentile of a memoryless wait is."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds, tokens per second, dollars per million tokens that are made."""

    rows: int
    """Requests that run at once; more than these wait."""
    ttft: float
    ttft_p99: float
    tpot: float
    e2e: float
    requests_per_s: float
    output_per_s: float
    total_per_s: float
    burst: float
    """Time to the last first token if all requests come at the same moment."""
    cost: float
    shares: dict[str, float]
    """Parts of the time by what they go for; they add up to 1."""

    def measure(self, name: str) -> float:
        return {"ttft": self.ttft, "ttft_p99": self.ttft_p99, "tpot": self.tpot, "e2e": self.e2e}[name]

    @property
    def limit(self) -> str:
        """What takes most of the time."""
        return max(self.shares, key=lambda name: self.shares[name])

    @property
    def kind(self) -> str:
        """Whether bytes, arithmetic, or neither of them takes most of the time."""
        sums = {"bytes": 0.0, "arithmetic": 0.0, "overhead": 0.0}
        for name, share in self.shares.items():
            sums[KINDS[name]] += share
        return max(sums, key=lambda name: sums[name])


KINDS = {
    "reading weights": "bytes",
    "multiplying with weights": "arithmetic",
    "reading the KV cache": "bytes",
    "attention of prompts": "arithmetic",
    "logits": "bytes",
    "moving activations": "bytes",
    "all-reduce": "bytes",
    "host and launches": "overhead",
}


class Cycle(NamedTuple):
    """Seconds: of a step of rows that generate, and by how much one prompt makes steps longer."""

    step: Parts
    prompt: Parts
    made: float
    """Tokens that a step makes for a row."""
    drafting: float

    @property
    def per_token(self) -> float:
        return (self.step.total + self.drafting) / self.made


def forecast(setup: Setup, memory: Memory, work: Workload, price: float) -> Forecast | None:
    """What to expect; None where not one request of the workload fits. `price` is per hour of all devices."""
    room = memory.requests(work.tokens_in + work.tokens_out / 2, work.shared)
    if work.length > memory.longest or memory.requests(work.length, work.shared) < 1:
        return None
    rows = max(1, min(work.concurrency, room))
    cycle = _cycle(setup, memory, work, rows)
    prompt, steps = cycle.prompt.total, work.tokens_out - 1
    first = cycle.step.total if steps else 0.0  # a prompt is computed within a step of the others
    life = rows * prompt + first + steps * cycle.per_token
    rate = rows / life
    queue = (work.concurrency - rows) / rate
    wait, tail = _wait(rows, prompt, life)
    if not steps:
        wait, tail = (rows - 1) * prompt, 0.0
    output = rate * work.tokens_out
    return Forecast(
        rows=rows,
        ttft=queue + wait + prompt + first,
        ttft_p99=queue + wait + prompt + first + tail,
        tpot=(life - wait - prompt - first) / steps if steps else 0.0,
        e2e=queue + life,
        requests_per_s=rate,
        output_per_s=output,
        total_per_s=rate * work.length,
        burst=(ceil(work.concurrency / rows) - 1) * life + rows * prompt + first,
        cost=price / 3600 / output * 1e6,
        shares=_shares(cycle, work, rows),
    )


def _wait(rows: int, prompt: float, life: float) -> tuple[float, float]:
    """(mean wait for other prompts, how much longer its 99th percentile is).

    A queue with random arrivals and equal service (M/D/1), of no more than all other requests. What is waited
    here is not waited between tokens: a request's life is as long either way.
    """
    busy = min(0.95, (rows - 1) * prompt / life)
    wait = min(busy * prompt / (2 * (1 - busy)), (rows - 1) * prompt / 2)
    return wait, min(wait * (TAIL - 1), (rows - 1) * prompt)


def _cycle(setup: Setup, memory: Memory, work: Workload, rows: int) -> Cycle:
    kinds = setup.anatomy.kinds
    last = work.tokens_out
    seen = [visible(work.tokens_in, work.tokens_in + last, kind.window) / last for kind, _ in kinds]
    near = [min(work.shared, kind.window or work.shared) for kind, _ in kinds]
    guessed = 1 + work.draft.tokens if work.draft else 1
    none = (0.0,) * len(kinds)
    keys, common = tuple(rows * n for n in seen), tuple(rows * float(n) for n in near)
    decode = Work(rows * guessed, rows * guessed, keys, common, none)
    step = parts(setup, decode)
    own = work.tokens_in - work.shared
    free = last == 1 or (memory.beside and guessed == 1)
    space = memory.tokens if free else max(1, memory.tokens - rows * guessed)
    # as many prompts in a step as must be to replace the rows that end in it; pieces of one where it is too long
    packed = min(max(1.0, rows / last), max(1.0, space / own), rows)
    steps = max(1, -(-own // space))
    chunk = _prompt(work, [kind.window for kind, _ in kinds], packed / steps)
    if last == 1:  # nothing is generated beside the prompts
        prompt = Parts(*[steps * part / packed for part in parts(setup, chunk)])
        return Cycle(step, prompt, 1.0, 0.0)
    both = parts(setup, _both(decode, chunk))
    prompt = Parts(*[steps * (with_it - alone) / packed for with_it, alone in zip(both, step, strict=True)])
    drafting = work.draft.tokens * _draft_seconds(setup, rows) if work.draft else 0.0
    return Cycle(step, prompt, work.draft.made if work.draft else 1.0, drafting)


def _prompt(work: Workload, windows: list[int | None], part: float) -> Work:
    """What that part of one prompt (more than 1: so many prompts) is in a step, on average over the prompt."""
    own = work.tokens_in - work.shared
    none = (0.0,) * len(windows)
    pairs = tuple(part * visible(work.shared, work.tokens_in, window) for window in windows)
    return Work(part, own * part, none, none, pairs)


def _both(one: Work, other: Work) -> Work:
    """A step that does the work of two."""
    sums = [
        tuple(a + b for a, b in zip(x, y, strict=True))
        for x, y in ((one.keys, other.keys), (one.near, other.near), (one.pairs, other.pairs))
    ]
    return Work(one.rows + other.rows, one.tokens + other.tokens, *sums)


def _draft_seconds(setup: Setup, rows: int) -> float:
    """One guess for every row by a head of one layer, as EAGLE has it; its share of a step without KV cache."""
    none = (0.0,) * len(setup.anatomy.kinds)
    step = parts(setup, Work(rows, rows, none, none, none))
    return (step.total - step.head) / len(setup.anatomy.layers) + step.head


def _shares(cycle: Cycle, work: Workload, rows: int) -> dict[str, float]:
    """What the time of a request's life goes for, its share of other prompts included."""
    steps = min(1, work.tokens_out - 1) + (work.tokens_out - 1) / cycle.made
    found = dict.fromkeys(KINDS, 0.0)
    for part, times in ((cycle.step, steps), (cycle.prompt, float(rows))):
        layers = "reading weights" if part.weights > part.arithmetic else "multiplying with weights"
        found[layers] += part.layers * times
        for name, seconds in (
            ("reading the KV cache", part.kv),
            ("attention of prompts", part.attention),
            ("logits", part.head),
            ("moving activations", part.moves),
            ("all-reduce", part.reduce),
            ("host and launches", part.overhead),
        ):
            found[name] += seconds * times
    found["reading weights"] += cycle.drafting * steps
    whole = sum(found.values()) or 1.0
    return {name: seconds / whole for name, seconds in found.items()}
