"""Structured output over a real tiny model, whose words are random: whatever it says, the form is kept."""

import json
import re
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest

from headrace.engine import constrain, gauge
from headrace.engine.engine import Engine
from headrace.engine.grammar import Compiler, Matcher
from headrace.engine.request import Event, Request, SamplingParams
from headrace.engine.scheduler import Row
from headrace.engine.start import Started, start
from headrace.engine.stream import Stream
from headrace.engine.structured import Grammar, StructuredOutputsParams, Thinking
from headrace.text.tokenizer import Tokenizer
from headrace.text.vocabulary import Vocabulary
from tests import tiny
from tests.engine.forms import fits, schema


@pytest.fixture(autouse=True, scope="module")
def beside() -> Iterator[None]:
    """Masks of few rows are made as those of many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constrain, "BESIDE", 0)
        yield


@pytest.fixture(params=["on", "off"])
def overlap(request: pytest.FixtureRequest) -> str:
    return request.param


Make = Callable[..., Started]


@pytest.fixture
def make(llama_folder: Path, overlap: str) -> Make:
    return lambda **more: start(tiny.config(llama_folder, **{"schedule.overlap": overlap, **more}))


@pytest.fixture
def started(make: Make) -> Started:
    return make()


def form(**wanted: Any) -> StructuredOutputsParams:
    return StructuredOutputsParams(**wanted)


def ask(
    started: Started, id: str, wanted: StructuredOutputsParams | None, prompt: str = "say", **more: Any
) -> Request:
    params = SamplingParams(**{"max_tokens": 120, "seed": 5, "structured_outputs": wanted, **more})
    (request,) = started.intake.requests(id, prompt, params)
    return request


def answers(
    started: Started, requests: list[Request], each: Callable[[Engine], None] | None = None
) -> dict[str, Stream]:
    """Run to the end; every request must end exactly once."""
    streams = {request.id: Stream(request, started.intake.tokenizer) for request in requests}
    for request in requests:
        started.engine.add(request)
    for events in steps(started.engine, each):
        for event in events:
            assert not streams[event.id].finish, "an event after the end"
            if streams[event.id].take(event).cancel:
                started.engine.cancel(event.id)
    assert all(stream.finish for stream in streams.values())
    scheduler = started.engine.scheduler
    assert not scheduler.live
    assert scheduler.pool.free == scheduler.pool.count
    return streams


def steps(
    engine: Engine, each: Callable[[Engine], None] | None = None, limit: int = 20_000
) -> Iterator[list[Event]]:
    while engine.busy:
        yield engine.step()
        if each is not None:
            each(engine)
        limit -= 1
        assert limit, "no progress"


def said(stream: Stream) -> tuple[str, str | None]:
    return stream.text, stream.finish


# -- every answer fits or is cut short


def test_every_answer_fits_its_schema_whatever_happens(make: Make):
    """Many schemas at once, with and without others between them, in so little memory that some must give way."""
    started = make(num_gpu_blocks_override=24, block_size=8, max_num_batched_tokens=32)
    dice = Random(1)
    forms = {f"s{n}": schema(dice) for n in range(60)}
    requests = [
        ask(
            started,
            id,
            form(json=each),
            "x" * dice.randint(1, 60),
            temperature=dice.choice([0, 1, 2]),
            seed=n,
            max_tokens=dice.choice([20, 80]),
            top_p=dice.choice([0.5, 1]),
            presence_penalty=dice.choice([0, 2]),
            min_tokens=dice.choice([0, 5]),
        )
        for n, (id, each) in enumerate(forms.items())
    ]
    plain = [ask(started, f"p{n}", None, max_tokens=20, seed=n) for n in range(10)]
    mixed = [*requests, *plain]
    dice.shuffle(mixed)
    found = answers(started, mixed)
    finishes = [found[id].finish for id in forms]
    assert set(finishes) <= {"stop", "length"}
    assert finishes.count("stop") > 30
    assert started.engine.scheduler.counts.evictions > 5
    for id, each in forms.items():
        if found[id].finish == "stop":
            assert fits(json.loads(found[id].text), each), (each, found[id].text)


def test_an_answer_does_not_depend_on_who_else_is_there_or_gives_way(make: Make):
    dice = Random(2)
    forms = [schema(dice) for _ in range(12)]
    one, many = make(), make(num_gpu_blocks_override=16, block_size=8, max_num_batched_tokens=16)

    def requests(started: Started) -> list[Request]:
        return [ask(started, str(n), form(json=each), "y" * n + "z", seed=n) for n, each in enumerate(forms)]

    alone = {request.id: said(answers(one, [request])[request.id]) for request in requests(one)}
    together = answers(many, requests(many))
    assert many.engine.scheduler.counts.evictions
    assert {id: said(stream) for id, stream in together.items()} == alone


@pytest.mark.parametrize("temperature", [0, 1])
def test_requests_without_a_grammar_are_left_alone(started: Started, temperature: float):
    def plain() -> list[Request]:
        return [
            ask(started, f"p{n}", None, "a" * (n + 1), max_tokens=30, temperature=temperature, seed=n)
            for n in range(3)
        ]

    before = {id: said(stream) for id, stream in answers(started, plain()).items()}
    mixed = [*plain(), ask(started, "g", form(regex="[ab]{20}")), ask(started, "h", form(json_object=True))]
    after = answers(started, mixed)
    assert {id: said(after[id]) for id in before} == before
    assert set(after["g"].text) <= {"a", "b"}


def test_an_interrupted_answer_goes_on_where_it_was(started: Started):
    wanted = form(
        json={"type": "array", "items": {"type": "integer", "maximum": 99, "minimum": 0}, "minItems": 9}
    )
    request = ask(started, "a", wanted, max_tokens=60)
    whole = answers(started, [request])["a"]
    for cut in (1, 7, len(whole.token_ids) - 1):
        rest = msgspec.structs.replace(request, id="b", emitted=tuple(whole.token_ids[:cut]))
        found = answers(started, [rest])["b"]
        assert found.token_ids == whole.token_ids[cut:]
        assert found.finish == whole.finish


def test_answers_are_the_same_beside_requests_whose_tokens_are_guessed(llama_folder: Path):
    def requests(started: Started) -> list[Request]:
        plain = [
            ask(started, f"p{n}", None, "ab" * (n + 3), max_tokens=60, logit_bias={9 + n: 20.0 * n}, **more)
            for n, more in enumerate([{}, {"logprobs": 2}, {"temperature": 0}])
        ]
        bound = [
            ask(started, "counts", form(regex="[ab]{40}"), presence_penalty=1),
            ask(started, "array", form(json={"type": "array", "items": {"enum": [1, 2]}, "minItems": 9})),
            ask(started, "word", form(choice=["yes", "no"]), ignore_eos=True),
        ]
        return [plain[0], bound[0], plain[1], *bound[1:], plain[2]]

    found: list[dict[str, Stream]] = []
    for most in (0, 6):
        names = {"schedule.overlap": "off", "schedule.speculate": most, "max_num_seqs": 16}
        started = start(tiny.config(llama_folder, **names))
        found.append(answers(started, requests(started)))
        accepted = started.engine.scheduler.counts.accepted_tokens
        assert (accepted > 10) == bool(most)
    for id, stream in found[0].items():
        assert stream.token_ids == found[1][id].token_ids
        assert said(stream) == said(found[1][id])
        assert [one.rank for one in stream.logprobs] == [one.rank for one in found[1][id].logprobs]


# -- kinds


KINDS = [
    (form(regex=r"\d{3}-[a-f]+/x{2,3}"), r"[0-9]{3}-[a-f]+/x{2,3}"),
    (form(choice=["yes", "no", 'may "be"\n', "\\é🙂"]), 'yes|no|may "be"\n|\\\\é🙂'),
    (form(grammar='start: "a"+ b\nb: "b" | "(" b ")"'), r"a+\(*b\)*"),
    (form(grammar='root ::= "x" [0-9] rest?\nrest ::= "z"'), "x[0-9]z?"),
    (form(json_object=True), r"(?s:\{.*\})"),
    (form(json=True), r"(?s:.*)"),
    (form(json='{"const": {"a": [1, 2]}}', disable_any_whitespace=True), r'\{"a":\[1,2\]\}'),
    (form(json={"type": "array", "items": {"const": 1}, "minItems": 3, "maxItems": 3}, whitespace_pattern="_"),
     r"\[_?1_?,_?1_?,_?1_?\]"),
    (form(structural_tag={"triggers": ["<f"],
                          "structures": [{"begin": "<f=1>", "schema": {"const": 5}, "end": "</f>"}]}),
     r"(?s:(?:(?!<f).)*(<f=1>5</f>(?:(?!<f).)*)*)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "pattern"), KINDS, ids=[f"{n}-{wanted.kind}" for n, (wanted, _) in enumerate(KINDS)]
)
def test_each_kind(started: Started, wanted: StructuredOutputsParams, pattern: str):
    found = answers(started, [ask(started, str(seed), wanted, seed=seed) for seed in range(6)])
    for stream in found.values():
        assert stream.finish in ("stop", "length")
        if stream.finish == "stop":
            assert re.fullmatch(pattern, stream.text), stream.text


# -- the end


def test_the_end_comes_when_nothing_else_can(started: Started):
    stream = answers(started, [ask(started, "a", form(choice=["abc"]), max_tokens=50)])["a"]
    assert (stream.text, stream.finish, stream.stop) == ("abc", "stop", None)
    assert len(stream.token_ids) == 3, "no token is spent on the end"


def test_the_end_token_comes_only_where_the_grammar_allows_it(started: Started):
    eos = tiny.EOS
    eager = {"logit_bias": {eos: 100}, "temperature": 0}
    found = answers(
        started,
        [
            ask(started, "a", form(regex="ab{3}c*"), **eager),
            ask(started, "b", form(regex="ab{3}c*"), min_tokens=9, **eager),
            ask(started, "c", form(regex="ab{3}c*"), ignore_eos=True, max_tokens=12, **eager),
            ask(started, "d", form(regex="ab{3}c{0,4}"), ignore_eos=True, max_tokens=12, **eager),
            ask(started, "e", form(choice=["ab"]), min_tokens=9, **eager),
        ],
    )
    assert said(found["a"]) == ("abbb", "stop")
    assert said(found["b"]) == ("abbb" + "c" * 5, "stop")
    assert said(found["c"]) == ("abbb" + "c" * 8, "length")
    assert said(found["d"]) == ("abbb" + "c" * 4, "stop")
    assert said(found["e"]) == ("ab", "stop")
    assert found["a"].token_ids[-1] == eos


def test_masks_that_allow_an_end_are_found_by_their_bits():
    masks = np.array([[1 << 2, 0], [1 << 3, 1], [-(1 << 31), 0], [0, 4], [0, 0], [-5, -5]], np.int32)
    assert constrain._allowing(constrain._by_word((2, 31, 34)), masks) == [0, 2, 3, 5]


def test_a_grammar_that_is_too_ambiguous_for_its_next_mask_is_an_error(
    started: Started, monkeypatch: pytest.MonkeyPatch
):
    """Its mask would allow the end: the answer must not seem to be one."""
    monkeypatch.setitem(gauge.LIMITS, "step_max_items", 60)
    ends = dict.fromkeys(started.intake.compiler.ends, -100)
    found = answers(
        started,
        [
            ask(started, "deep", form(grammar='start: s\ns: s s | "a"'), logit_bias=ends),
            ask(started, "other", form(regex="[ab]{30}")),
        ],
    )
    assert found["deep"].finish == "error"
    assert set(found["deep"].text) == {"a"}
    assert said(found["other"])[1] == "stop"


def test_other_wishes_hold_within_the_grammar(started: Started):
    words = started.intake.text_tokenizer
    a, b, c = (words.encode(letter, add_special_tokens=False)[0] for letter in "abc")
    found = answers(
        started,
        [
            ask(started, "bias", form(regex="[abc]{8}"), logit_bias={b: 100, 200: 100}, temperature=0),
            ask(started, "allowed", form(regex="[abc]{8}"), allowed_token_ids=[c, 200]),
            ask(started, "bad", form(regex="[abc]{30}"), bad_words=["a", "bc"]),
            ask(started, "forced", form(choice=["aaa"]), bad_words=["a"]),
            ask(started, "stop", form(regex="[abc]{80}"), stop=["c"]),
            ask(started, "id", form(regex="[abc]{80}"), stop_token_ids=[a], min_tokens=3),
        ],
    )
    assert said(found["bias"]) == ("b" * 8, "stop")
    assert said(found["allowed"]) == ("c" * 8, "stop")
    assert set(found["bad"].text) <= {"b", "c"}
    assert "bc" not in found["bad"].text
    assert said(found["forced"]) == ("aaa", "stop")
    assert (found["stop"].finish, found["stop"].stop) == ("stop", "c")
    assert found["id"].stop == a
    assert len(found["id"].token_ids) > 3


def test_who_cannot_go_on_ends_alone(started: Started, caplog: pytest.LogCaptureFixture):
    words = started.intake.text_tokenizer
    (z,) = words.encode("z", add_special_tokens=False)
    found = answers(
        started,
        [
            ask(started, "stuck", form(regex="ab"), allowed_token_ids=[z]),
            ask(started, "done", form(regex="z{3}y?"), allowed_token_ids=[z]),
            ask(started, "other", form(regex="[ab]{9}")),
            ask(started, "nothing", form(regex="(ab)?"), allowed_token_ids=[z], prompt_logprobs=0),
        ],
    )
    assert said(found["stuck"]) == ("", "error")
    assert said(found["nothing"]) == ("", "stop")
    assert len(found["nothing"].prompt_logprobs) == len("say") - 1, "the step that ends it computes them"
    assert said(found["done"]) == ("zzz", "stop")
    assert len(found["other"].text) == 9
    assert "stuck" in caplog.text


def test_a_matcher_that_fails_ends_its_request_alone(started: Started, monkeypatch: pytest.MonkeyPatch):
    requests = [ask(started, "bad", form(regex="[ab]{30}")), ask(started, "good", form(regex="[cd]{30}"))]

    def spoil(engine: Engine) -> None:
        if engine.constraints._beside.busy:
            engine.constraints._beside.wait()  # until its mask is made a matcher is nobody else's
        seq = engine.scheduler.live.get("bad")
        if (
            seq is not None
            and len(seq.tokens) == len(seq.request.prompt) + 5
            and not seq.matcher.ll.is_error()
        ):
            seq.matcher.ll.consume_token(0)

    found = answers(started, requests, spoil)
    assert found["bad"].finish == "error"
    assert said(found["good"])[1] == "stop"
    assert len(found["good"].text) == 30


def test_masks_of_a_dropped_step_are_over_before_anything_else_happens(make: Make, overlap: str):
    """They were written into memory that was gone, and read matchers that had gone on."""
    if overlap == "off":
        pytest.skip("then nothing is made beside")
    started = make()
    engine, over = started.engine, list[bool]()
    constraints = engine.constraints
    for n in range(4):
        engine.add(ask(started, f"r{n}", form(regex="[ab]{30}")))
    while not constraints._beside.busy:
        engine.step()
    constraints._beside.wait()
    assert constraints._bits is not None
    memory, work = weakref.ref(constraints._bits), [constraints._filling]

    def slow() -> None:
        time.sleep(0.05)
        assert memory() is not None
        work.pop()()
        over.append(True)

    constraints._beside.start(slow)
    constraints.drop()
    assert over == [True]
    assert not constraints._beside.busy
    assert constraints.masks() == (None, [])


def test_who_keeps_others_waiting_is_ended(started: Started, monkeypatch: pytest.MonkeyPatch):
    """A grammar with ever more readings; how long is long is set here, so that nothing depends on this machine."""
    monkeypatch.setattr(constrain, "SLOW_STEP", -1.0)  # every step is suspicious
    seconds = iter(range(1000))
    monkeypatch.setattr(constrain, "thread_time", lambda: next(seconds) * 0.006)
    fast = ask(started, "fast", form(regex="[ab]{30}"))
    assert answers(started, [fast])["fast"].finish == "stop"
    monkeypatch.setattr(constrain, "SLOW_MASK", 0.005)
    slow = ask(started, "slow", form(grammar='start: s\ns: s s | "a"'))
    found = answers(started, [slow, ask(started, "other", None, max_tokens=20)])
    assert (found["slow"].finish, len(found["slow"].token_ids)) == ("error", constrain.STRIKES - 1)
    assert found["other"].finish == "length"


# -- thoughts


def thinking(begun: bool) -> StructuredOutputsParams:
    return form(regex="[ab]{4}", thinking=Thinking("<|im_start|>", "qq", begun))


def test_thoughts_come_first_and_are_free(started: Started):
    words = started.intake.text_tokenizer
    (q,) = words.encode("q", add_special_tokens=False)
    eos = tiny.EOS
    found = answers(
        started,
        [
            ask(started, "closes", thinking(True), logit_bias={q: 100}, temperature=0),
            ask(started, "goes on", thinking(True), bad_words=["q"], logit_bias={eos: 100}, max_tokens=40),
            ask(started, "none", thinking(False), logit_bias={1: -100}),
            ask(started, "opens", thinking(False), logit_bias={1: 100, q: 90}, temperature=0, max_tokens=40),
        ],
    )
    assert found["closes"].text[:2] == "qq"
    assert set(found["closes"].text[2:]) <= {"a", "b"}
    assert (len(found["closes"].text), found["closes"].finish) == (6, "stop")
    assert found["goes on"].finish == "length", "a thought does not end the answer"
    assert len(found["none"].text) == 4
    assert set(found["none"].text) <= {"a", "b"}
    assert found["opens"].token_ids[0] == 1
    assert found["opens"].finish == "length"


def test_a_thought_that_closes_in_the_middle_of_a_token():
    """What the token says behind the tag counts as the answer's beginning."""
    library = tiny.library()
    library.add_tokens(["></think>\n\nab"])
    words = Tokenizer(Vocabulary(library))
    compiler = Compiler(words, 260, frozenset({2}))
    grammar = Grammar(
        kind="regex",
        source='{"grammars": [{"lark_grammar": "start: /[ab]{3}/"}]}',
        thinking=Thinking("<think>", "</think>", True),
    )
    matcher = Matcher(compiler.start(grammar.source).result(), grammar, compiler, 2)
    prompt, thought = [5, 6], words.encode("hm", add_special_tokens=False)
    assert matcher.follow([*prompt, *thought]) is None
    assert not matcher.bound
    assert matcher.follow([*prompt, *thought, 259]) is None
    assert matcher.bound
    (b,) = words.encode("b", add_special_tokens=False)
    assert matcher.follow([*prompt, *thought, 259, b]) == "stop"


# -- the engine


def test_nobody_waits_for_a_grammar_that_is_being_compiled(started: Started, monkeypatch: pytest.MonkeyPatch):
    engine, compiler = started.engine, started.intake.compiler
    late, other = ask(started, "late", form(choice=["ab"])), ask(started, "other", None, max_tokens=10)
    compiled: Future[Any] = Future()
    real = compiler.start(late.grammar.source).result()
    monkeypatch.setattr(compiler, "start", lambda source: compiled)
    engine.add(late)
    engine.add(other)
    assert engine.busy
    events = []
    while "other" in engine.scheduler.live or not events:
        events += engine.step()
    assert {event.id for event in events} == {"other"}
    assert engine.busy
    assert engine.step() == []
    compiled.set_result(real)
    last = [event for events in steps(engine) for event in events][-1]
    assert (last.id, last.finish) == ("late", "stop")


def test_a_request_is_cancelled_while_it_waits_for_its_grammar(started: Started):
    request = ask(started, "a", form(choice=["ab"]))
    started.engine.add(request)
    assert started.engine.cancel("a").finish == "abort"
    assert started.engine.cancel("a") is None
    assert not started.engine.busy


def test_a_grammar_that_is_none_ends_its_request(started: Started):
    request = ask(started, "a", form(choice=["ab"]))
    broken = msgspec.structs.replace(request.grammar, source='{"grammars": [{"lark_grammar": "start: x"}]}')
    found = answers(
        started, [msgspec.structs.replace(request, grammar=broken), ask(started, "b", None, max_tokens=5)]
    )
    assert [stream.finish for stream in found.values()] == ["error", "length"]


def test_a_compiler_that_fails_ends_its_request_alone(started: Started, monkeypatch: pytest.MonkeyPatch):
    requests = [ask(started, "a", form(choice=["ab"])), ask(started, "b", None, max_tokens=5)]
    failed: Future[Any] = Future()
    failed.set_exception(RuntimeError("not enough memory"))
    monkeypatch.setattr(started.intake.compiler, "start", lambda source: failed)
    assert [stream.finish for stream in answers(started, requests).values()] == ["error", "length"]


def test_a_step_without_grammars_does_not_meet_the_code_for_them(
    started: Started, monkeypatch: pytest.MonkeyPatch
):
    def never(step: list[Row]) -> None:
        raise AssertionError("masks for nobody")

    monkeypatch.setattr(started.engine.constraints, "masks", never)
    monkeypatch.setattr(started.engine.constraints, "follow", never)
    assert answers(started, [ask(started, "a", None, max_tokens=5)])["a"].finish == "length"


def test_several_answers_to_one_prompt(started: Started):
    params = SamplingParams(n=3, seed=1, max_tokens=40, structured_outputs=form(regex="[a-z]{5}"))
    requests = started.intake.requests("r", "x", params)
    texts = [stream.text for stream in answers(started, requests).values()]
    assert all(len(text) == 5 for text in texts)
    assert len(set(texts)) == 3
