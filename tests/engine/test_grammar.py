"""Grammars are checked where requests come in, within limits, and remembered."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headrace.base.errors import Broken, Refused, Unreachable
from headrace.engine import gauge, grammar
from headrace.engine.gauge import Gauge, bits_of
from headrace.engine.grammar import Compiler, Matcher, mask_of
from headrace.engine.structured import Grammar, StructuredOutputsParams
from headrace.text.tokenizer import Tokenizer
from headrace.text.vocabulary import Vocabulary
from tests import tiny

WORDS = Tokenizer(Vocabulary(tiny.library()))


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(WORDS, WORDS.vocab_size, frozenset({tiny.EOS}))


@pytest.fixture(scope="module")
def guard() -> Iterator[Gauge]:
    made = Gauge(WORDS.backend.to_str, WORDS.vocab_size, [tiny.EOS])
    yield made
    made.close()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"json": {"type": "odd"}}, "odd"),
    ({"json": {"uniqueItems": True, "type": "array"}}, "uniqueItems"),
    ({"json": {"$ref": "https://example.com/x"}}, "not present"),
    ({"json": {"$ref": "#/$defs/none"}}, "none"),
    ({"json": {"type": "string", "minLength": 3, "maxLength": 2}}, "Unsatisfiable"),
    ({"json": {"enum": []}}, "Unsatisfiable"),
    ({"json": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "may overlap; use anyOf"),
    ({"regex": "a("}, "unclosed group"),
    ({"regex": "(?=a)b"}, "look-around"),
    ({"regex": r"(a)\1"}, "backreferences"),
    ({"regex": "(" * 300 + "a" + ")" * 300}, "nest"),
    ({"regex": "\\"}, "cannot be followed"),
    ({"grammar": "start: nothing"}, "nothing"),
    ({"grammar": "begin: 'a'"}, "cannot be followed"),
    ({"grammar": "start: <no_such_token>"}, "no_such_token"),
    ({"grammar": "root ::= nothing"}, "nothing"),
    ({"grammar": "root ::= ("}, "GBNF"),
    ({"grammar": ["root ::= a"]}, "grammar of type list; expected text"),
    ({"grammar": "root ::= " + "(" * 9000}, "GBNF"),
    ({"grammar": "root ::= " + '"a" ' * 9000}, "GBNF"),
]


@pytest.mark.parametrize(("wanted", "reason"), BAD, ids=[str(wanted)[:40] for wanted, _ in BAD])
def test_a_bad_grammar_is_refused_with_the_reason(compiler: Compiler, wanted: dict[str, Any], reason: str):
    for _ in range(2):
        with pytest.raises(Refused, match=reason) as caught:
            compiler.grammar(StructuredOutputsParams(**wanted))
        assert caught.value.param == "structured_outputs"
        assert len(caught.value.message) < 500


GOOD: list[dict[str, Any]] = [
    {"json": {"type": "object", "properties": {"a": {"$ref": "#"}}}},
    {"json": {"$defs": {"x": {"type": "array", "items": {"$ref": "#/$defs/x"}}}, "$ref": "#/$defs/x"}},
    {
        "json": {
            "title": "T",
            "description": "d",
            "type": "integer",
            "default": 1,
            "examples": [2],
            "$schema": "s",
        }
    },
    {"json": {"anyOf": [{"type": "string", "pattern": "^a.*$"}, {"const": None}], "nullable": True}},
    {"regex": "^(a+)+$"},
    {"regex": r"(\w{1,50}\s){1,50}"},
    {"regex": "(a|b)*a(a|b){60}"},
    {"grammar": 'start: "a" | start "b"'},
    {"grammar": "start: <|im_start|> /x/"},
    {"choice": [f"choice number {n}" for n in range(3000)]},
]


@pytest.mark.parametrize("wanted", GOOD, ids=[str(wanted)[:40] for wanted in GOOD])
def test_a_good_grammar_is_taken(compiler: Compiler, wanted: dict[str, Any]):
    made = compiler.grammar(StructuredOutputsParams(**wanted))
    assert compiler.start(made.source).result() is compiler.start(made.source).result(), "compiled once"


def test_ends_that_are_no_words_end_nothing():
    words = WORDS.vocab_size
    roomy = Compiler(WORDS, words + 100, frozenset({tiny.EOS, words + 5, words + 500}))
    grammar = roomy.grammar(StructuredOutputsParams(regex="a"))
    assert roomy.start(grammar.source).result().is_accepting() is False
    assert roomy.ends == (tiny.EOS,)


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grammar, "KEPT", 3)
    monkeypatch.setattr(grammar, "KNOWN", 5)
    small = Compiler(WORDS, WORDS.vocab_size, frozenset({tiny.EOS}))
    made = [small.grammar(StructuredOutputsParams(choice=[f"c{n}"])) for n in range(9)]
    assert list(small._recent) == [one.source for one in made[-3:]]
    assert set(small._compiled) == set(small._recent), "nobody holds the others"
    assert len(small._verdicts) == 5
    assert small.start(made[0].source).result() is not None, "what was forgotten is compiled again"


def test_what_was_begun_is_compiled_once_while_somebody_holds_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grammar, "KEPT", 1)
    small, made = Compiler(WORDS, WORDS.vocab_size, frozenset({tiny.EOS})), []
    monkeypatch.setattr(
        small, "_compile", lambda source: made.append(source) or Compiler._compile(small, source)
    )
    forms = [StructuredOutputsParams(choice=[f"c{n}"]) for n in range(4)]
    held = [small.begin(form) for form in forms]
    sources = [small.grammar(form).source for form in forms]
    assert [small.start(source) for source in sources] == held
    assert sorted(made) == sorted(sources)


def test_what_is_begun_and_bad_is_refused_later(compiler: Compiler, guard: Gauge):
    assert compiler.begin(StructuredOutputsParams(choice=[])) is None
    bad = StructuredOutputsParams(regex="(")
    assert compiler.begin(bad) is not None
    with pytest.raises(Refused):
        compiler.grammar(bad)
    guarded = Compiler(WORDS, WORDS.vocab_size, frozenset({tiny.EOS}), guarded=True)
    assert guarded.begin(StructuredOutputsParams(choice=["a"])) is None


def test_a_form_is_read_once_and_again_when_it_is_another(compiler: Compiler):
    schema: dict[str, Any] = {"properties": {"a": {"const": 1}}}
    form = StructuredOutputsParams(json=schema)
    first = compiler.read(form)
    assert compiler.read(StructuredOutputsParams(json={"properties": {"a": {"const": 1}}})) is first
    schema["properties"]["a"]["const"] = True
    others = [
        StructuredOutputsParams(json=schema, disable_any_whitespace=compact) for compact in (False, True)
    ]
    sources = {compiler.read(other).source for other in others}
    assert len(sources | {first.source}) == 3
    with pytest.raises(Refused, match="no JSON"):
        compiler.read(StructuredOutputsParams(json={"const": {1, 2}}))
    for _ in range(2):
        with pytest.raises(Refused, match="no JSON"):
            compiler.read(StructuredOutputsParams(json={"const": float("nan")}))


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(Broken, match="llguidance") as caught:
        Compiler(WORDS, 259, frozenset()).grammar(StructuredOutputsParams(choice=["a"]))
    assert "pip install" in caught.value.hint


def test_a_vocabulary_that_llguidance_cannot_read_is_refused():
    library = tiny.library()
    library.decoder = None  # pyright: ignore[reportAttributeAccessIssue]
    library.pre_tokenizer = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(Refused, match="tokenizer"):
        Compiler(Tokenizer(Vocabulary(library)), 259, frozenset({2})).grammar(
            StructuredOutputsParams(choice=["a"])
        )


def test_a_vocabulary_larger_than_the_tokenizer_and_one_without_an_end():
    wide = Compiler(WORDS, 1000, frozenset({tiny.EOS, 5000}))
    made = wide.grammar(StructuredOutputsParams(regex="a?"))
    mask = wide.start(made.source).result().compute_bitmask()
    assert len(mask) == wide.words * 4
    endless = Compiler(WORDS, 259, frozenset())
    assert endless.grammar(StructuredOutputsParams(regex="a?"))
    assert len(endless.ends) == 1, "llguidance wants one in any case; requests do without"


# -- the process that tries grammars


def lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def test_the_guard_says_what_is_wrong(guard: Gauge):
    with pytest.raises(Refused, match="missing") as caught:
        guard.check(lark("start: missing"))
    assert caught.value.param == "structured_outputs"
    guard.check(lark("start: <|im_start|> /a/"))


def test_a_grammar_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch):
    slow = '{"grammars": [{"json_schema": {"type": "integer", "multipleOf": 99999937}}]}'
    monkeypatch.setattr(gauge, "SECONDS", 0.3)
    made = Gauge(WORDS.backend.to_str, WORDS.vocab_size, [tiny.EOS])
    try:
        with pytest.raises(Refused, match=r"takes more than 0\.3 seconds"):
            made.check(slow)
        made.check(lark("start: /a/"))  # the next one has a new process
    finally:
        made.close()


@pytest.fixture
def wary() -> Iterator[Compiler]:
    made = Compiler(WORDS, WORDS.vocab_size, frozenset({tiny.EOS}), guarded=True)
    yield made
    assert made._gauge is not None
    made._gauge.close()


Hit = Callable[[signal.Signals, int], None]


@pytest.fixture
def hit(monkeypatch: pytest.MonkeyPatch) -> Hit:
    """Sends a signal to the process that tries grammars, at the next so many questions."""

    def begin(number: signal.Signals, times: int) -> None:
        left, real = [number] * times, Gauge._exchange

        def exchange(gauge: Gauge, message: object, seconds: float) -> str | None:
            if isinstance(message, str) and left:
                assert gauge._child is not None
                os.kill(gauge._child.pid, left.pop())
                seconds = 0.1
            return real(gauge, message, seconds)

        monkeypatch.setattr(Gauge, "_exchange", exchange)

    return begin


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_whose_process_is_ended_from_outside_is_tried_once_more_and_not_judged(
    wary: Compiler, hit: Hit, number: signal.Signals
):
    hit(number, 1)
    assert wary.grammar(StructuredOutputsParams(choice=["a"]))
    hit(number, 2)
    with pytest.raises(Unreachable, match="could not be tried"):
        wary.grammar(StructuredOutputsParams(choice=["b"]))
    assert wary.grammar(StructuredOutputsParams(choice=["b"]))


def test_the_guard_says_that_a_vocabulary_cannot_be_read():
    library = tiny.library()
    library.decoder = None  # pyright: ignore[reportAttributeAccessIssue]
    library.pre_tokenizer = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(Refused, match="tokenizer"):
        Gauge(library.to_str, 259, [tiny.EOS]).check(lark("start: /a/"))


def test_strangers_grammars_are_tried_by_the_guard(guard: Gauge):
    wary = Compiler(WORDS, WORDS.vocab_size, frozenset({tiny.EOS}), guarded=True)
    wary._gauge = guard
    assert wary.grammar(StructuredOutputsParams(choice=["yes"]))
    with pytest.raises(Refused, match="unclosed"):
        wary.grammar(StructuredOutputsParams(regex="("))


def test_masks_that_take_too_long_are_found_out(compiler: Compiler, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gauge, "MASK_SECONDS", 0.0)
    source = compiler.read(StructuredOutputsParams(regex="never seen before")).source
    with pytest.raises(Refused, match="too ambiguous"):
        gauge.look_ahead(gauge.compiled(source, compiler.lltokenizer), compiler.lltokenizer)


# -- one answer


def matcher(compiler: Compiler, **wanted: Any) -> Matcher:
    made: Grammar = compiler.grammar(StructuredOutputsParams(**wanted))
    return Matcher(compiler.start(made.source).result(), made, compiler, start=2)


def test_where_an_answer_stands_depends_on_its_tokens_alone(compiler: Compiler):
    tokens = [7, 7, *WORDS.encode('{"a": [1, {"b": null}]', add_special_tokens=False)]
    at_once, one_by_one = (matcher(compiler, json_object=True) for _ in range(2))
    assert at_once.follow(tokens) is None
    for n in range(2, len(tokens) + 1):
        assert one_by_one.follow(tokens[:n]) is None
        assert one_by_one.follow(tokens[:n]) is None, "nothing is taken twice"
    assert at_once.ll.compute_bitmask() == one_by_one.ll.compute_bitmask()
    assert at_once.follow([*tokens, *WORDS.encode("}", add_special_tokens=False)]) == "stop"


def test_a_token_that_breaks_the_grammar_is_an_error(compiler: Compiler):
    strict = matcher(compiler, regex="ab")
    assert strict.follow([0, 0, *WORDS.encode("ax", add_special_tokens=False)]) == "error"
    assert strict.end() == "error"


def test_masks_and_ids():
    assert list(bits_of(mask_of((0, 31, 32, 95), 3))) == [0, 31, 32, 95]
    assert not mask_of((), 2).any()
