"""`headrace serve` as a process of its own."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests import tiny
from tests.text.chats import HERMES

READY = re.compile(r"^(\S+) is ready at (\S+) after ([\d.]+) s$", re.MULTILINE)
KEY_NAMES = ("HEADRACE_API_KEY", "HEADRACE_ADMIN_KEY")
SMALL = ("--memory.kv-blocks", "512", "--threads", "1", "--device", "cpu", "--schedule.rows", "16")


def model(at: Path) -> Path:
    """A tiny random model with room for schemas and a chat template that knows tools."""
    folder = tiny.folder(at, max_position_embeddings=4096)
    (folder / "template.jinja").write_text(HERMES)
    return folder


def children(pid: int) -> list[int]:
    """Processes started by a process."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


class Offered:
    """A server process; `said` is what it has printed so far, on both streams."""

    def __init__(self, words: Sequence[str], environ: dict[str, str] | None = None):
        mine = {name: value for name, value in os.environ.items() if name not in KEY_NAMES}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "headrace", "serve", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**mine, "OMP_NUM_THREADS": "1", **(environ or {})},
        )
        self._lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def said(self) -> str:
        return "".join(self._lines)

    @property
    def url(self) -> str:
        """Where it is; waits until it is ready."""
        assert self._ready.wait(120), self.said
        found = READY.search(self.said)
        assert found, self.said
        return found[2]

    def stop(self, *signals: int) -> int:
        """Ask it to end; its exit code."""
        for number in signals or (signal.SIGTERM,):
            self.process.send_signal(number)
        code = self.process.wait(120)
        self._reader.join(10)
        return code

    def close(self) -> None:
        """Make sure that nothing of it is left."""
        self.process.kill()
        self.process.wait()
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)
            if READY.search(line):
                self._ready.set()
        self._ready.set()


@contextmanager
def offered(folder: Path, *words: str, environ: dict[str, str] | None = None) -> Iterator[Offered]:
    """A server of a model made with `model`, on a free port; it must end well."""
    template = ["--chat-template", str(folder / "template.jinja")]
    it = Offered(
        [str(folder), "--served-model-name", "tiny", "--port", "0", *SMALL, *template, *words], environ
    )
    try:
        yield it
        assert it.stop() == 0, it.said
        assert "Traceback" not in it.said
    finally:
        it.close()
