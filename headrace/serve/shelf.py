"""Responses that are kept for a while, in bounded memory: the least recently used make room."""

import logging
import sqlite3
import weakref
from pathlib import Path
from time import monotonic_ns
from typing import Any

import msgspec

log = logging.getLogger(__name__)

Json = dict[str, Any]

OVERHEAD = 200
"""Bytes of a row beside its body, about."""

TABLES = """
CREATE TABLE IF NOT EXISTS kept (id TEXT PRIMARY KEY, used INTEGER, size INTEGER, maker INTEGER, body BLOB);
CREATE INDEX IF NOT EXISTS by_use ON kept (used);
CREATE TABLE IF NOT EXISTS total (one INTEGER PRIMARY KEY, bytes INTEGER);
INSERT OR IGNORE INTO total VALUES (1, 0);
CREATE TRIGGER IF NOT EXISTS more AFTER INSERT ON kept BEGIN UPDATE total SET bytes = bytes + new.size; END;
CREATE TRIGGER IF NOT EXISTS less AFTER DELETE ON kept BEGIN UPDATE total SET bytes = bytes - old.size; END;
"""


class Kept(msgspec.Struct):
    """A response, and the conversation up to and including it.

    items       the input it came with     messages    the whole conversation, without instructions
    cancelled   somebody wants it to end
    """

    response: Json
    items: list[Json] = msgspec.field(default_factory=list[Json])
    messages: list[Json] = msgspec.field(default_factory=list[Json])
    cancelled: bool = False


class Shelf:
    """Keeps up to `most` bytes. With a `path`, several processes share it; the file is only for this server's run."""

    def __init__(self, most: int, path: Path | None = None):
        self.most, self.shared = most, path is not None
        self._decode = msgspec.json.Decoder(Kept).decode
        place = ":memory:" if path is None else path
        self._base = sqlite3.connect(place, timeout=5, isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._base.close)
        # What is in the file is of no use after this run, so nothing waits for the disk.
        self._base.execute("PRAGMA synchronous = OFF")
        if path is not None:
            self._base.execute("PRAGMA journal_mode = WAL")
        self._base.executescript(TABLES)

    def put(self, id: str, kept: Kept, maker: int | None = None) -> bool:
        """Keep it, in place of what was kept under this id. False if it alone is too large, or the disk is full.

        `maker` is the number of the front process that goes on making it.
        """
        body = msgspec.json.encode(kept)
        size = len(body) + OVERHEAD
        run = self._base.execute
        try:
            with self._base:  # all of it or nothing
                run("BEGIN IMMEDIATE")
                run("DELETE FROM kept WHERE id = ?", (id,))
                if fits := size <= self.most:
                    run("INSERT INTO kept VALUES (?, ?, ?, ?, ?)", (id, monotonic_ns(), size, maker, body))
                while self.size > self.most:
                    run("DELETE FROM kept WHERE id = (SELECT id FROM kept ORDER BY used LIMIT 1)")
        except sqlite3.Error as error:
            log.warning("a response cannot be kept: %s", error)
            return False
        return fits

    def left_by(self, maker: int) -> list[str]:
        """Those that a process of this number was still making."""
        return [id for (id,) in self._base.execute("SELECT id FROM kept WHERE maker = ?", (maker,))]

    def get(self, id: str) -> Kept | None:
        """What is kept under this id; it counts as used."""
        row = self._base.execute("SELECT body FROM kept WHERE id = ?", (id,)).fetchone()
        if row is None:
            return None
        self._base.execute("UPDATE kept SET used = ? WHERE id = ?", (monotonic_ns(), id))
        return self._decode(row[0])

    def drop(self, id: str) -> bool:
        """Keep it no longer; whether it was kept."""
        return self._base.execute("DELETE FROM kept WHERE id = ?", (id,)).rowcount > 0

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._base.execute("SELECT bytes FROM total").fetchone()[0]
