"""Kernels compiled ahead of their first launch, side by side in processes of their own; loads no torch.

Triton compiles a kernel when it is first launched, and holds Python's lock all the while: threads gain nothing. Within
`noted` launches are written down instead of made, and `Compilers` compile them into Triton's cache on disk, where the
real launches find them. What is not found there, for whatever reason, is compiled when launched.
"""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread, get_ident
from typing import Any, NamedTuple

KERNELS = Path(__file__).parent
MOST = 16
"""Processes that compile at once, at the most: each takes 200 MB for a second or two."""
NICE = 5
"""How far they stand back behind the engine."""


class Job(NamedTuple):
    """A kernel's place, and what Triton's compiler asks for besides; constants and attributes by place of argument."""

    module: str
    name: str
    target: Any
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    def compile(self) -> None:
        """Into Triton's cache. Raises whatever the compiler does."""
        from triton.compiler import ASTSource, compile
        from triton.experimental.gluon._runtime import GluonASTSource

        kernel = getattr(import_module(self.module), self.name)
        source = GluonASTSource if kernel.is_gluon() else ASTSource
        made = source(kernel, self.signature, self.constants, self.attributes)
        compile(made, self.target, dict(self.options))


@contextmanager
def noted() -> Iterator[dict[str, Job]]:
    """Within, this thread launches nothing; kernels that are not compiled yet are noted, once each.

    What they would have written stays as it was: uninitialized memory for the most part. For Triton 3.6 to 3.8.
    """
    from triton.runtime.jit import JITFunction

    every: Any = JITFunction
    jobs: dict[str, Job] = {}
    thread, run, do_compile = get_ident(), every.run, every._do_compile

    def only_prepare(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return run(kernel, *args, grid=grid, warmup=warmup or get_ident() == thread, **options)

    def note(kernel: Any, key: str, signature: Any, device: Any, constants: Any, options: Any, attributes: Any,
             warmup: bool) -> Any:  # fmt: skip
        if get_ident() != thread:
            return do_compile(kernel, key, signature, device, constants, options, attributes, warmup)
        module, name, target = kernel.fn.__module__, kernel.fn.__qualname__, kernel.device_caches[device][2]
        job = Job(module, name, target, signature, constants, attributes, vars(options))
        return jobs.setdefault(f"{module}.{name} {key}", job) and None

    every.run, every._do_compile = only_prepare, note
    try:
        yield jobs
    finally:
        every.run, every._do_compile = run, do_compile


class Compilers:
    """A process that imports the kernels and then becomes as many as there are jobs and cores. Start it early."""

    def __init__(self) -> None:
        most = min(MOST, max(1, len(os.sched_getaffinity(0)) - 1))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(most)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._feeding: Thread | None = None

    def begin(self, jobs: Iterable[Job]) -> None:
        """Have them compiled, the first ones first; there is no second call."""
        words = b"".join(map(pickle.dumps, jobs))
        self._feeding = Thread(target=self._process.communicate, args=(words,), daemon=True)
        self._feeding.start()

    def wait(self, seconds: float | None = None) -> bool | None:
        """Whether all that can be compiled is; None where that takes longer."""
        assert self._feeding is not None
        self._feeding.join(seconds)
        return None if self._feeding.is_alive() else self._process.returncode == 0

    def stop(self) -> None:
        """What is not compiled yet will not be."""
        self._process.kill()
        if self._feeding is None:
            self.begin(())
        self.wait()


def begin_early() -> Compilers | None:
    """For a process that is about to import torch: compilers, if there is a GPU and nothing was ever compiled here."""
    there = Path("/dev/nvidiactl").exists() and find_spec("triton") is not None
    return Compilers() if there and not any(folder().glob("*")) else None


def remember() -> Thread:
    """Begin what a process's first launch would begin with: a hash of all of Triton, half a second of its own."""

    def read() -> None:
        from triton.runtime.cache import triton_key

        triton_key()

    reading = Thread(target=read, name="headrace-triton", daemon=True)
    reading.start()
    return reading


def folder() -> Path:
    """Where notes are kept of what is in Triton's cache: in that cache, so that they are lost together."""
    home = Path(os.environ.get("TRITON_HOME") or Path.home())
    return Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache") / "headrace"


def note_of(*facts: object) -> Path:
    """The file that is there once the kernels are compiled, as they are now, that an engine of these facts needs."""
    sources = sorted(path for path in KERNELS.rglob("*.py"))
    stats = [(path.name, stat.st_size, stat.st_mtime_ns) for path in sources for stat in (path.stat(),)]
    return folder() / sha256(json.dumps([stats, *map(repr, facts)]).encode()).hexdigest()[:32]


def serve(most: int) -> None:
    """Compile the jobs that come in, each in a process of its own, `most` at once, until there are no more."""
    from triton.runtime.cache import triton_key

    os.nice(NICE)
    triton_key()  # remembered: all of Triton's own files are read for it
    for path in (KERNELS / "gpu").glob("[!_]*.py"):
        import_module(f"headrace.kernels.gpu.{path.stem}")
    running = 0
    while True:
        try:
            job = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        if running == most:
            os.wait()
            running -= 1
        if os.fork() == 0:
            try:
                job.compile()
            finally:
                os._exit(0)  # what went wrong is said when the kernel is launched
        running += 1
    for _ in range(running):
        os.wait()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
