"""A GPU in a page: KV memory holds the tokens themselves, read back through block tables of its own."""

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Ordered

from headrace.engine.blocks import VOID, BlockPool, Group
from headrace.engine.request import Request, SamplingParams
from headrace.engine.scheduler import Outcome, Row, Scheduler
from headrace.engine.sequence import Sequence

STOP = 6


def next_token(views: list[list[int]]) -> int:
    """The model: every layer group's view of the context matters, and so does how long it is."""
    return sum((n + 1) * (sum(view) * 31 + len(view)) for n, view in enumerate(views)) % 7


def view(group: Group, tokens: list[int]) -> list[int]:
    return tokens[group.first_visible(len(tokens) - 1) :]


class FakeDevice:
    """Knows of a sequence only what the rows say: slot, positions, new blocks, and tokens it does not feed."""

    def __init__(self, scheduler: Scheduler):
        self.pool, self.rows = scheduler.pool, scheduler.max_rows
        self.kv: list[list[int | None]] = [[None] * self.pool.size for _ in self.pool.blocks]
        self.tables: dict[tuple[int, int], list[int]] = {}
        self.last: dict[int, int] = {}

    def run(self, step: list[Row]) -> Outcome:
        assert len(step) <= self.rows
        assert len({row.slot for row in step}) == len(step)
        for row in step:
            assert row.start < row.stop
            self._take_blocks(row)
            known = (
                [self.last[row.slot]] if row.feeds else [*row.seq.tokens[row.start : row.stop], *row.draft]
            )
            assert len(known) == row.stop - row.start
            for group in range(len(self.pool.groups)):
                for position, token in zip(range(row.start, row.stop), known, strict=True):
                    self._write(row, group, position, token)
        return Outcome(
            [self._sample(row, stop) for row in step for stop in range(row.stop - row.sampled, row.stop)]
        )

    def _take_blocks(self, row: Row) -> None:
        if row.new is not None:
            for group, ids in enumerate(row.new.ids):
                table = self.tables.setdefault((row.slot, group), [])
                table[row.new.at :] = ids

    def _write(self, row: Row, group: int, position: int, token: int) -> None:
        block = self.tables[row.slot, group][position // self.pool.size]
        assert block != VOID
        self.kv[block][position % self.pool.size] = token

    def _sample(self, row: Row, last: int) -> int:
        views = []
        for number, group in enumerate(self.pool.groups):
            table = self.tables[row.slot, number]
            cells = range(group.first_visible(last), last + 1)
            views.append([self.kv[table[p // self.pool.size]][p % self.pool.size] for p in cells])
        self.last[row.slot] = next_token(views)
        return self.last[row.slot]


def serve(
    scheduler: Scheduler,
    requests: Ordered[Request],
    depth: int,
    cancel_at: dict[int, list[str]] | None = None,
) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """Run to the end with up to `depth` steps in flight: tokens and terminal events of each request."""
    device, flight = FakeDevice(scheduler), deque()
    tokens: dict[str, list[int]] = {}
    ends: dict[str, list[str]] = {}
    for request in requests:
        scheduler.add(request)
        tokens[request.id], ends[request.id] = [], []
    number = 0
    while (step := scheduler.plan()) or flight:
        number += 1
        assert number < 10_000, "no progress"
        if step:
            counts = [row.stop - row.start for row in step]
            alone = sum(count - len(row.draft) == 1 for row, count in zip(step, counts, strict=True))
            assert len(step) <= scheduler.max_rows
            assert sum(counts) <= scheduler.max_tokens + alone, "guesses and prompts come out of the budget"
            flight.append((step, device.run(step)))
        events = []
        for id in (cancel_at or {}).get(number, []):
            if (event := scheduler.cancel(id)) is not None:
                events.append(event)
        if len(flight) > depth or not step:
            events += scheduler.commit(*flight.popleft())
        for event in events:
            if event.token is not None:
                tokens[event.id].append(event.token)
            if event.finish:
                ends[event.id].append(event.finish)
        scheduler.pool.check()
    check_names(scheduler.pool, device, names(requests, tokens, scheduler.pool.size))
    return tokens, ends


def check_names(pool: BlockPool, device: FakeDevice, contents: dict[bytes, list[int]]) -> None:
    """Named blocks hold what their names say."""
    for named in pool.named:
        for key, block in named.items():
            assert device.kv[block] == contents[key]


def names(requests: Iterable[Request], tokens: dict[str, list[int]], size: int) -> dict[bytes, list[int]]:
    """What full blocks hold, by name: only what requests have got may be found there."""
    contents: dict[bytes, list[int]] = {}
    for request in requests:
        seq = Sequence(request, 0)
        seq.tokens += tokens[request.id]
        for n, key in enumerate(seq.name_blocks(size)):
            contents[key] = seq.tokens[n * size : (n + 1) * size]
    return contents


def alone(request: Request, groups: tuple[Group, ...]) -> list[int]:
    """What the fake model says to this request when nobody else is there."""
    tokens = list(request.prompt)
    for _ in range(request.max_tokens):
        tokens.append(next_token([view(group, tokens) for group in groups]))
        if tokens[-1] in request.stop_ids:
            break
    return tokens[len(request.prompt) :]


def ask(id: object, prompt: Iterable[int], max_tokens: int, salt: str = "", priority: int = 0) -> Request:
    return Request(
        id=str(id),
        prompt=tuple(prompt),
        params=SamplingParams(max_tokens=max_tokens),
        max_tokens=max_tokens,
        stop_ids=frozenset({STOP}),
        salt=salt,
        priority=priority,
    )
