"""Grammars at work, by llguidance: checked, compiled for one vocabulary, followed token by token; torch-free."""

import marshal
import re
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from hashlib import blake2b
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import msgspec
import numpy as np

from headrace.base.errors import Refused
from headrace.base.hardware import cores
from headrace.engine.gauge import Gauge, compiled, library, read_vocabulary, refused
from headrace.engine.schemas import MOST_TEXT, text_of
from headrace.engine.structured import (
    KINDS,
    SWITCHES,
    Grammar,
    StructuredOutputsParams,
    Thinking,
    to_grammar,
)
from headrace.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

KEPT = 256
"""Grammars, read and compiled, that are kept for the next request with the same one."""
KNOWN = 4096
"""Grammars of which it is remembered whether they are good."""
GBNF = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
MOST_GBNF = 1 << 15


class Compiler:
    """Grammars for one vocabulary of `vocab` ids. Its methods may be called from any thread.

    `guarded`: whoever sends grammars is not trusted, so that they are tried in a process of their own first.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, eos_ids: frozenset[int], *, guarded: bool = False):
        self.tokenizer, self.vocab, self.eos_ids = tokenizer, vocab, eos_ids
        self.words = -(-vocab // 32)
        self._ends = sorted(id for id in eos_ids if id < min(vocab, tokenizer.vocab_size))
        self._gauge = Gauge(tokenizer.backend.to_str, vocab, self._ends) if guarded else None
        self._verdicts: OrderedDict[bytes, Refused | None] = OrderedDict()
        self._read: OrderedDict[tuple[bytes, Thinking | None], Grammar] = OrderedDict()
        self._compiled = WeakValueDictionary[str, "Future[LLMatcher]"]()
        self._recent: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self._lock, self._making = Lock(), Lock()

    # -- at the door

    def grammar(self, params: StructuredOutputsParams) -> Grammar:
        """What `params` asks for, looked at closely. Raises Refused with llguidance's reason."""
        grammar = self.read(params)
        self.check(grammar)
        return grammar

    def begin(self, params: StructuredOutputsParams) -> "Future[LLMatcher] | None":
        """Have it compiled while others are: `grammar` is to follow, and finds it while the future is held.

        None where that will be refused, or where it is for the process of its own to say so.
        """
        try:
            return self.start(self.read(params).source) if self._gauge is None else None
        except Refused:
            return None

    def read(self, params: StructuredOutputsParams) -> Grammar:
        """What `params` asks for, not looked at by llguidance yet. Raises Refused."""
        try:
            asked = marshal.dumps([getattr(params, name) for name in (*KINDS, *SWITCHES)], 2)
        except ValueError:  # there is something in it that is no plain data
            return self._read_anew(params)
        name = asked, params.thinking
        with self._lock:
            found = self._read.get(name)
        if found is None:
            found = self._read_anew(params)
            with self._lock:
                self._read[name] = found
                while len(self._read) > KEPT:
                    self._read.popitem(last=False)
        return found

    def _read_anew(self, params: StructuredOutputsParams) -> Grammar:
        if params.grammar is not None and GBNF.search(text_of(params.grammar, "grammar", MOST_TEXT)):
            params = msgspec.structs.replace(params, grammar=_from_gbnf(params.grammar))
        return to_grammar(params, self.is_special)

    def check(self, grammar: Grammar) -> None:
        """Raise Refused if the grammar is none, or takes too long. May take seconds for a new one.

        Unreachable, which is not remembered: it could not be tried.
        """
        name = blake2b(grammar.source.encode(), digest_size=16).digest()
        with self._lock:
            known = name in self._verdicts
            fault = self._verdicts.get(name)
        if not known:
            fault = self._try(grammar.source)
            with self._lock:
                self._verdicts[name] = fault
                while len(self._verdicts) > KNOWN:
                    self._verdicts.popitem(last=False)
        if fault is not None:
            raise Refused(fault.message, param=fault.param, hint=fault.hint or None)

    def is_special(self, text: str) -> bool:
        """Whether this text is a token of its own, of which plain text is never made."""
        id = self.tokenizer.piece_to_id(text)
        return id is not None and (id in self.tokenizer.special_ids or (text[0], text[-1]) == ("<", ">"))

    def _try(self, source: str) -> Refused | None:
        try:
            if self._gauge is not None:
                self._gauge.check(source)
            else:
                self.start(source).result()
        except Refused as fault:
            return fault
        return None

    # -- for the engine

    def start(self, source: str) -> "Future[LLMatcher]":
        """Compile in another thread, or have it at once if it was compiled before. The future may raise Refused."""
        with self._lock:
            found = self._compiled.get(source)
            if found is None:
                found = self._compiled[source] = self._threads.submit(self._compile, source)
            self._recent[source] = found
            self._recent.move_to_end(source)
            while len(self._recent) > KEPT:
                self._recent.popitem(last=False)
        return found

    @property
    def lltokenizer(self) -> "LLTokenizer":
        """The vocabulary as llguidance wants it; made when first needed, which takes part of a second."""
        with self._making:
            return self._lltokenizer

    @cached_property
    def _lltokenizer(self) -> "LLTokenizer":
        return read_vocabulary(self.tokenizer.backend.to_str(), self.vocab, self._ends)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Ids that llguidance takes for the end of a text."""
        return tuple(self.lltokenizer.eos_tokens)

    @cached_property
    def executor(self) -> "LLExecutor":
        """Threads that fill masks."""
        return library().LLExecutor(_helpers())

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_helpers(), "headrace-grammar")

    def _compile(self, source: str) -> "LLMatcher":
        return compiled(source, self.lltokenizer)


class Matcher:
    """Where one answer stands in its grammar: a function of the tokens generated so far.

    ll      llguidance's part
    upto    how many of all tokens, the prompt's `start` included, it has taken
    bound   whether the next token must follow the grammar; in a thought it need not
    opens   a token that may come nevertheless, and begins a thought
    plain   its mask is what the grammar says, less `barred`
    strikes how often its mask took too long
    keep    mask int32 [W] of the only tokens that the request lets come, whatever the grammar says; None: all
    barred  tokens that do not come either: ends of a text for llguidance, but not for this request
    """

    __slots__ = (
        "_closes", "_compiler", "_tail", "barred", "bound", "keep", "ll", "opens", "plain", "strikes", "upto",
    )  # fmt: skip

    def __init__(
        self,
        compiled: "LLMatcher",
        grammar: Grammar,
        compiler: Compiler,
        start: int,
        keep: np.ndarray | None = None,
        barred: tuple[int, ...] = (),
    ):
        self.ll = compiled.deep_copy()
        self.upto, self.keep, self.barred, self.strikes = start, keep, barred, 0
        thinking = grammar.thinking
        self.bound = thinking is None or not thinking.begun
        self.opens: int | None = None
        if thinking is not None and self.bound:
            self.opens = compiler.tokenizer.piece_to_id(thinking.opens)
        self._compiler, self._closes = compiler, thinking.closes.encode() if thinking is not None else b""
        self._tail = b""
        self.plain = thinking is None and keep is None

    def follow(self, tokens: Sequence[int]) -> str | None:
        """Take what is new of all tokens, prompt and answer so far. How the answer must end now, if it must.

        "stop" if the grammar lets nothing more come, "error" if a token broke it or it became too complex.
        """
        new = tokens[self.upto :]
        self.upto += len(new)
        if not (self.bound and self.opens is None):
            new = self._think(new)
        if new:
            self.ll.consume_tokens(list(new))
        return self.end()

    def end(self) -> str | None:
        """How the answer must end now, if it must."""
        if not self.ll.is_stopped():
            return None
        return "error" if self.ll.is_error() else "stop"

    def adapt(self, mask_W: np.ndarray) -> bool:
        """Add to the grammar's mask what the request says besides, but for `barred`. Whether anything may come."""
        if not self.bound:
            mask_W[:] = ~mask_of(self._compiler.ends, len(mask_W))  # a thought is not the end
        elif self.opens is not None:
            mask_W |= mask_of((self.opens,), len(mask_W))
        if self.keep is None:
            return True
        mask_W &= self.keep
        return bool(mask_W.any())

    def bar(self, mask_W: np.ndarray) -> bool:
        """Take `barred` out of the grammar's mask. Whether anything is left."""
        mask_W &= ~mask_of(self.barred, len(mask_W))
        return bool(mask_W.any())

    def last(self) -> str:
        """How the answer ends where no token may come."""
        return "stop" if self.bound and self.ll.is_accepting() else "error"

    def _think(self, new: Sequence[int]) -> Sequence[int]:
        """Take the tokens of a thought; those behind it."""
        for n, token in enumerate(new):
            if self.bound:
                if token != self.opens:
                    self.opens = None
                    return new[n:]
                self.bound, self.opens = False, None
            elif (rest := self._closed(token)) is not None:
                self.bound = True
                return [*self._compiler.lltokenizer.tokenize_bytes(rest), *new[n + 1 :]]
        return ()

    def _closed(self, token: int) -> bytes | None:
        """What the token says behind the closing tag; None if the thought goes on."""
        tokenizer = self._compiler.tokenizer
        said = tokenizer.token_bytes(token)
        if token in tokenizer.special_ids and said != self._closes:  # no part of it is text
            self._tail = b""
            return None
        self._tail += said
        _, closed, rest = self._tail.partition(self._closes)
        if closed:
            self._tail = b""
            return rest.lstrip()
        self._tail = self._tail[-len(self._closes) :]
        return None


def _helpers() -> int:
    """Threads beside the one that plans steps; more take time from it than they save."""
    return max(2, min(8, cores() // 2))


@lru_cache(64)
def mask_of(ids: tuple[int, ...], words: int) -> np.ndarray:
    """A mask int32 [words] that allows these ids. Not to be written to."""
    bits = np.zeros(words * 32, np.uint8)
    bits[list(ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def _from_gbnf(text: str) -> str:
    """GBNF, whose rules are written with ::=, as Lark. Raises Refused."""
    if len(text) > MOST_GBNF:
        raise refused(f"GBNF of {len(text)} characters; expected at most {MOST_GBNF}, or Lark")
    llguidance = library()
    try:
        return llguidance.gbnf_to_lark.any_to_lark(text)
    except Exception as error:
        raise refused(f"GBNF: {error}") from error
