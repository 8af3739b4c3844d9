"""No schedule, eviction, cancelling or failing step changes what is said under a grammar, or leaves anything behind."""

import re
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine import constrain
from headrace.engine.constrain import Masks
from headrace.engine.engine import Engine
from headrace.engine.gauge import bits_of
from headrace.engine.grammar import Compiler, Matcher
from headrace.engine.layout import lay_out
from headrace.engine.request import Request, SamplingParams
from headrace.engine.scheduler import Outcome, Row
from headrace.engine.structured import StructuredOutputsParams, Thinking
from headrace.text.tokenizer import Tokenizer
from headrace.text.vocabulary import Vocabulary
from tests import tiny

WORDS = Tokenizer(Vocabulary(tiny.library()))
COMPILER = Compiler(WORDS, WORDS.vocab_size, frozenset({tiny.EOS}))
FORMS: list[StructuredOutputsParams | None] = [
    None,
    StructuredOutputsParams(regex="[ab]{3,9}"),
    StructuredOutputsParams(json={"type": "array", "items": {"type": "integer", "maximum": 9, "minimum": 0}}),
    StructuredOutputsParams(choice=["x", "yes", "yesterday"]),
    StructuredOutputsParams(regex="c{2}d*", thinking=Thinking("<|im_start|>", "q", True)),
    StructuredOutputsParams(grammar='start: "(" start ")" | "z"', thinking=Thinking("<|im_start|>", "r")),
]
SAID = [
    ".*",
    "[ab]{3,9}",
    r"\[\s*([0-9]\s*(,\s*[0-9]\s*)*)?\]",
    "x|yes|yesterday",
    ".*?qc{2}d*",
    r"(<\|im_start\|>.*?r)?(?P<open>\(*)z\)*",
]
GRAMMARS = [form and COMPILER.grammar(form) for form in FORMS]


@pytest.fixture(autouse=True, scope="module")
def beside() -> Iterator[None]:
    """Masks of few rows are made as those of many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constrain, "BESIDE", 0)
        yield


class Stub:
    """Says of each row what its request and its position make it say, of what the mask allows.

    Who has no grammar says the same again and again, so that what comes next can be guessed. `faults` are numbers of
    calls that fail.
    """

    def __init__(self, faults: frozenset[int] = frozenset()):
        self.faults, self.calls = faults, 0

    def run(self, step: list[Row]) -> Any:
        return self.draw(self.forward(step), None)

    def prepare(self, step: list[Row]) -> None:
        self._fail()

    def forward(self, step: list[Row]) -> Any:
        self._fail()
        return SimpleNamespace(step=step, prompt=None)

    def draw(self, ahead: Any, masks: Masks | None) -> Any:
        self._fail()
        rows = dict(zip(masks.rows.tolist(), masks.bits.numpy(), strict=True)) if masks is not None else {}
        tokens: list[int] = []
        for row in ahead.step:
            for stop in range(row.stop - row.sampled + 1, row.stop + 1):
                place = stop if row.seq.request.grammar is not None else stop % 3
                dice = crc32(f"{row.seq.request.id} {place}".encode())
                allowed = bits_of(rows[n]) if (n := len(tokens)) in rows else range(WORDS.vocab_size)
                tokens.append(int(allowed[dice % len(allowed)]) if len(allowed) else 0)

        def wait() -> Outcome:
            self._fail()
            return Outcome(tokens)

        return wait

    def check(self) -> None:
        pass

    def _fail(self) -> None:
        self.calls += 1
        if self.calls in self.faults:
            raise RuntimeError("the device had a bad moment")


def engine(
    runner: Stub,
    blocks: int = 200,
    tokens: int = 64,
    rows: int = 8,
    overlap: bool = False,
    speculate: int = 0,
) -> Engine:
    plan = SimpleNamespace(
        overlap=overlap,
        speculate=speculate,
        rows=rows,
        max_len=64,
        device=torch.device("cpu"),
        kv_blocks=blocks,
        block=4,
        layout=lay_out([None]),
        tokens=tokens,
        policy="arrival",
        prefix_cache=True,
    )
    return Engine(plan, runner, COMPILER)  # pyright: ignore[reportArgumentType]


def ask(id: int, form: int, prompt: int, length: int) -> Request:
    return Request(
        id=str(id),
        prompt=tuple(range(3, 3 + prompt)),
        params=SamplingParams(max_tokens=length),
        max_tokens=length,
        stop_ids=frozenset({tiny.EOS}),
        grammar=GRAMMARS[form],
    )


def fresh(request: Request) -> Matcher:
    """For a second opinion on an answer, all at once."""
    assert request.grammar is not None
    compiled = COMPILER.start(request.grammar.source).result()
    return Matcher(compiled, request.grammar, COMPILER, len(request.prompt))


def serve(
    made: Engine, requests: list[Request], cancel_at: dict[int, str]
) -> dict[str, tuple[list[int], str]]:
    """Tokens and end of each request, of which there is exactly one."""
    tokens: dict[str, list[int]] = defaultdict(list)
    ends: dict[str, str] = {}
    for request in requests:
        made.add(request)
    steps = 0
    while made.busy:
        events = made.step()
        steps += 1
        assert steps < 3000, "no progress"
        if (id := cancel_at.get(steps)) and (event := made.cancel(id)) is not None:
            events = [*events, event]
        for event in events:
            assert event.id not in ends
            if event.token is not None:
                tokens[event.id].append(event.token)
            if event.finish:
                ends[event.id] = event.finish
    assert made.scheduler.pool.free == made.scheduler.pool.count
    assert not made.constraints.waiting
    return {request.id: (tokens[request.id], ends[request.id]) for request in requests}


WORK = st.lists(
    st.tuples(st.integers(0, len(FORMS) - 1), st.integers(1, 12), st.integers(1, 14)), min_size=1, max_size=7
)


@settings(max_examples=60)
@given(
    work=WORK,
    blocks=st.integers(8, 24),
    tokens=st.integers(2, 32),
    rows=st.integers(1, 6),
    ahead=st.sampled_from([(False, 0), (True, 0), (False, 5)]),
    cancel=st.dictionaries(st.integers(1, 30), st.integers(0, 6).map(str), max_size=2),
)
def test_no_schedule_changes_what_is_said(
    work: list[tuple[int, int, int]],
    blocks: int,
    tokens: int,
    rows: int,
    ahead: tuple[bool, int],
    cancel: dict[int, str],
):
    requests = [ask(id, *each) for id, each in enumerate(work)]
    alone = {request.id: serve(engine(Stub()), [request], {})[request.id] for request in requests}
    for request, (form, _, _) in zip(requests, work, strict=True):
        said, end = alone[request.id]
        said = said[:-1] if said and said[-1] == tiny.EOS else said
        assert end in ("stop", "length")
        assert request.grammar is None or fresh(request).follow([*request.prompt, *said]) != "error"
        text = WORDS.decode(said, skip_special_tokens=False)
        assert end == "length" or re.fullmatch(SAID[form], text, re.DOTALL), text
    found = serve(engine(Stub(), blocks, tokens, rows, *ahead), requests, cancel)
    for id, (said, end) in found.items():
        if end == "abort":
            assert id in cancel.values()
            assert said == alone[id][0][: len(said)]
        else:
            assert (said, end) == alone[id]


@settings(max_examples=60)
@given(
    work=WORK,
    tokens=st.integers(2, 16),
    ahead=st.sampled_from([(False, 0), (True, 0), (False, 5)]),
    faults=st.frozensets(st.integers(1, 30), min_size=1, max_size=2),
)
def test_a_step_that_fails_costs_nobody_else_a_word(
    work: list[tuple[int, int, int]], tokens: int, ahead: tuple[bool, int], faults: frozenset[int]
):
    requests = [ask(id, *each) for id, each in enumerate(work)]
    alone = {request.id: serve(engine(Stub()), [request], {})[request.id] for request in requests}
    overlap, speculate = ahead
    made = engine(Stub(faults), tokens=tokens, overlap=overlap, speculate=speculate)
    found = serve(made, requests, {})
    failed = [id for id, (_, end) in found.items() if end == "error" and alone[id][1] != "error"]
    assert len(failed) <= len(faults)
    for id, (said, end) in found.items():
        if id in failed:
            assert said == alone[id][0][: len(said)]
        else:
            assert (said, end) == alone[id]


def test_masks_meet_their_rows_beside_rows_that_are_guessed():
    requests = [ask(id, form, 4, 40) for id, form in enumerate([0, 1, 0, 2, 4, 0, 3])]
    alone = {request.id: serve(engine(Stub()), [request], {})[request.id] for request in requests}
    made = engine(Stub(), speculate=5, rows=12)
    assert serve(made, requests, {}) == alone
    assert made.scheduler.counts.accepted_tokens > 10
    assert alone["6"][1] == "stop", "some followed their grammar to its end"


def test_wherever_a_step_fails_while_requests_come_only_one_is_lost():
    """Every call of the device in turn, with steps that wait for their masks beside those before and after them."""
    requests = [ask(id, form, 3 + id, 12) for id, form in enumerate([1, 0, 2, 4, 1])]
    alone = {request.id: serve(engine(Stub()), [request], {})[request.id] for request in requests}
    for request in requests:
        assert request.grammar is None or COMPILER.start(request.grammar.source).result()
    for call in range(1, 36):
        stub = Stub(frozenset({call}))
        made = engine(stub, tokens=6, overlap=True)
        said: dict[str, list[int]] = {request.id: [] for request in requests}
        ends: dict[str, str] = {}
        late = list(requests)
        for _ in range(200):
            if late:
                made.add(late.pop(0))
            for event in made.step():
                said[event.id] += [event.token] if event.token is not None else []
                if event.finish:
                    ends[event.id] = event.finish
        assert stub.calls > call, "it never failed"
        assert len(ends) == len(requests), f"call {call}"
        failed = [id for id, end in ends.items() if end == "error"]
        assert len(failed) <= 1
        for id in said:
            assert id in failed or (said[id], ends[id]) == alone[id], f"call {call}"
