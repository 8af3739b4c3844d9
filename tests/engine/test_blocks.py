"""What the pool lends comes back, and what it remembers can be found again."""

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headrace.engine.blocks import VOID, BlockPool, Group, OutOfBlocks, chain, root


class Lending(RuleBasedStateMachine):
    """Takes, holds, seals and drops in any order."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(6, 4)
        self.held: list[list[int]] = []
        self.names = 0

    @rule(n=st.integers(1, 7))
    def take(self, n):
        free = self.pool.free
        if n > free:
            with pytest.raises(OutOfBlocks, match=f"{n} blocks wanted, {free} free"):
                self.pool.take(n)
        else:
            self.held.append(self.pool.take(n))
            assert self.pool.free == free - n

    @rule(which=st.integers(0, 5))
    def drop(self, which):
        if which < len(self.held):
            self.pool.drop(self.held.pop(which))

    @rule(which=st.integers(0, 5))
    def seal(self, which):
        if which < len(self.held) and self.held[which]:
            self.names += 1
            key = str(self.names).encode()
            self.pool.seal(self.held[which][0], key)

    @rule(number=st.integers(1, 8))
    def share(self, number):
        (found,) = self.pool.match([str(number).encode()])
        self.pool.hold(found)
        self.held.append(found)

    @rule()
    def forget(self):
        self.pool.forget_all()
        assert self.pool.match([str(self.names).encode()]) == [[]]

    @invariant()
    def nothing_is_lost(self):
        self.pool.check()
        used = {i for ids in self.held for i in ids}
        assert self.pool.free == 6 - len(used)


TestLending = Lending.TestCase


def test_the_tail_of_a_prefix_is_reused_before_its_head():
    pool = BlockPool(3, 4)
    ids = pool.take(3)
    for n, i in enumerate(ids):
        pool.seal(i, bytes([n]))
    pool.drop(ids)
    assert pool.take(1) == [ids[2]]
    assert pool.match([b"\0", b"\1", b"\2"]) == [[ids[0], ids[1]]]


def test_blocks_without_a_name_are_reused_first():
    pool = BlockPool(3, 4)
    named, unnamed = pool.take(1), pool.take(2)
    pool.seal(named[0], b"name")
    pool.drop(named)
    pool.drop(unnamed)
    assert set(pool.take(2)) == set(unnamed)
    assert pool.match([b"name"]) == [named]


def test_a_window_needs_only_its_last_blocks():
    pool = BlockPool(8, 4, (Group(None), Group(4)))
    keys = [bytes([n]) for n in range(3)]
    full, windowed = pool.take(3), pool.take(3)
    for n in range(3):
        pool.seal(full[n], keys[n], 0)
    pool.seal(windowed[1], keys[1], 1)
    assert pool.match(keys) == [full[:2], [VOID, windowed[1]]]
    pool.seal(windowed[2], keys[2], 1)
    assert pool.match(keys) == [full, [VOID, VOID, windowed[2]]]


def test_names_depend_on_everything_before():
    assert chain(chain(b"", [1, 2]), [3, 4]) != chain(chain(b"", [2, 1]), [3, 4])
    assert root("tenant") != root("") == b""
