"""Who holds which block of KV memory. Integers only: the tensors live elsewhere."""

from array import array
from collections import OrderedDict
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from headrace.base.errors import Broken

VOID = 0
"""The block nobody gets: padded rows write there, and table entries outside a window point to it."""


class Group(NamedTuple):
    """Layers that share one block table. `window`: keys a query may see, itself included; None is all."""

    window: int | None = None

    def first_visible(self, position: int) -> int:
        """The oldest position that a query at `position` (or any later one) still needs."""
        return 0 if self.window is None else max(0, position - self.window + 1)


def blocks_for(groups: Ids[Group], length: int, size: int, step: int) -> int:
    """The most blocks of `size` tokens that a sequence holds on its way to `length`, `step` tokens at a time.

    A group with a window gives back what no later query can see.
    """
    total = 0
    for group in groups:
        blocks = -(-length // size)
        if group.window is not None:
            blocks = min(blocks, -(-(group.window + step) // size) + 1)
        total += blocks
    return total


class OutOfBlocks(Broken):
    """More blocks were wanted than are free; the scheduler never lets this happen."""


def chain(parent: bytes, tokens: Ids[int]) -> bytes:
    """Name of a full block: SHA-256 of its tokens and, through its parent's name, of all before it."""
    return sha256(parent + array("I", tokens).tobytes()).digest()


def root(salt: str) -> bytes:
    """Parent of a sequence's first block. Requests with different salts never share."""
    return sha256(salt.encode()).digest() if salt else b""


@dataclass(slots=True)
class Block:
    id: int
    holders: int = 0
    group: int = 0
    key: bytes | None = None


class BlockPool:
    """Lends blocks 1..count. A named block nobody holds can still be found until its memory is needed."""

    def __init__(self, count: int, size: int, groups: tuple[Group, ...] = (Group(),)):
        self.size = size
        self.count = count
        self.groups = groups
        self.blocks = [Block(i) for i in range(count + 1)]
        self.idle: OrderedDict[int, None] = OrderedDict.fromkeys(
            range(1, count + 1)
        )  # next to be reused first
        self.named: list[dict[bytes, int]] = [{} for _ in groups]

    @property
    def free(self) -> int:
        return len(self.idle)

    def match(self, keys: Ids[bytes]) -> list[list[int]]:
        """Per group, the blocks of the longest prefix whose visible part is all there. Holds nothing.

        A block that the first new query can no longer see is VOID in its group's list.
        """
        found = [[named.get(key, VOID) for key in keys] for named in self.named]
        n = len(keys)
        for group, ids in zip(self.groups, found, strict=True):
            if group.window is None:
                n = min(n, ids.index(VOID) if VOID in ids else len(ids))
        while n and not all(self._visible(g, ids, n) for g, ids in zip(self.groups, found, strict=True)):
            n -= 1
        matched: list[list[int]] = []
        for group, ids in zip(self.groups, found, strict=True):
            first = group.first_visible(n * self.size) // self.size
            matched.append([VOID] * min(first, n) + ids[first:n])
        return matched

    def _visible(self, group: Group, ids: list[int], n: int) -> bool:
        return group.window is None or VOID not in ids[group.first_visible(n * self.size) // self.size : n]

    def hold(self, ids: Ids[int]) -> None:
        for i in ids:
            if i != VOID:
                self.idle.pop(i, None)
                self.blocks[i].holders += 1

    def take(self, n: int) -> list[int]:
        """Lend `n` blocks, forgetting the least recently used names. Raises OutOfBlocks."""
        if n > self.free:
            raise OutOfBlocks(f"{n} blocks wanted, {self.free} free")
        ids = [self.idle.popitem(last=False)[0] for _ in range(n)]
        for i in ids:
            self._forget(i)
            self.blocks[i].holders = 1
        return ids

    def drop(self, ids: Ids[int]) -> None:
        """Give back. The tail of a prefix is worth less than its head, so it is reused first."""
        for i in reversed(ids):
            if i == VOID:
                continue
            block = self.blocks[i]
            block.holders -= 1
            if block.holders == 0:
                self.idle[i] = None
                if block.key is None:
                    self.idle.move_to_end(i, last=False)

    def seal(self, i: int, key: bytes, group: int = 0) -> None:
        """The block is full and computed: others may share it from now on."""
        block = self.blocks[i]
        if block.key is None and key not in self.named[group]:
            self.named[group][key] = i
            block.key, block.group = key, group

    def forget_all(self) -> None:
        """Empty the prefix cache; blocks in use stay in use, nobody new will share them."""
        for i in range(1, self.count + 1):
            self._forget(i)

    def _forget(self, i: int) -> None:
        block = self.blocks[i]
        if block.key is not None:
            del self.named[block.group][block.key]
            block.key = None

    def check(self) -> None:
        """What must hold after every call; tests ask."""
        assert set(self.idle) == {b.id for b in self.blocks[1:] if b.holders == 0}
        assert all(b.holders >= 0 for b in self.blocks)
        for g, named in enumerate(self.named):
            assert all(self.blocks[i].key == key and self.blocks[i].group == g for key, i in named.items())
