"""Kernels compiled ahead of their first launch, side by side in processes of their own; loads no torch.

Triton compiles a kernel when it is first launched, and holds Python's lock all the while: threads gain nothing. Within
`noted` launches are written down instead of made, and `Compilers` compile them into Triton's cache on disk, from where
they are loaded before they are launched. What is not there, for whatever reason, is compiled when launched.
"""

import json
import os
import signal
import subprocess
import sys
from ast import literal_eval
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Thread, get_ident
from types import ModuleType
from typing import Any, NamedTuple

KERNELS = Path(__file__).parent
GPU = Path("/dev/nvidiactl")
MOST = 16
"""Processes that compile at once, at the most: each takes 200 MB for a second or two."""
LONELY = 300
"""Seconds after which a process that was begun early gives up waiting for a first job."""
NICE = 5
"""How far they stand back behind the engine."""


class Job(NamedTuple):
    """A kernel's place, and what Triton's compiler asks for besides; constants and attributes by place of argument.

    All of it is made of Python's literals, as which it is sent.
    """

    module: str
    name: str
    target: tuple[str, int, int]
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    def compile(self) -> None:
        """Into Triton's cache, and what launches it, which is C for gcc in some versions. Raises whatever they do."""
        from triton.backends.compiler import GPUTarget
        from triton.backends.nvidia.driver import CudaLauncher
        from triton.compiler import ASTSource, compile
        from triton.experimental.gluon._runtime import GluonASTSource

        module = import_module(self.module)
        settle(module)
        kernel = getattr(module, self.name)
        source = GluonASTSource if kernel.is_gluon() else ASTSource
        asked = source(kernel, self.signature, self.constants, self.attributes)
        made = compile(asked, GPUTarget(*self.target), dict(self.options))
        CudaLauncher(made.src, made.metadata)


def settle(module: ModuleType) -> None:
    """Have Triton hash a module's functions in their order, those that they call first.

    In 3.6 a hash, by which what is compiled is found, depends on which of those were hashed before.
    """
    from triton.runtime.jit import JITCallable

    for function in [found for found in vars(module).values() if isinstance(found, JITCallable)]:
        if function.hash is None and function.fn.__module__ != module.__name__:
            settle(sys.modules[function.fn.__module__])
        _ = function.cache_key  # it stays


Load = Callable[[], None]
"""Makes a kernel ready to be launched, or raises RuntimeError."""


@contextmanager
def noted(tell: Callable[[Job], object] = bool) -> Iterator[dict[str, Load]]:
    """Within, this thread launches nothing; kernels that are not compiled yet are noted, once each, and told.

    What they would have written stays as it was: uninitialized memory for the most part. For Triton 3.6 to 3.8.
    """
    from triton.errors import TritonError
    from triton.runtime.jit import JITFunction

    every: Any = JITFunction
    loads: dict[str, Load] = {}
    thread, run, do_compile = get_ident(), every.run, every._do_compile

    def only_prepare(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return run(kernel, *args, grid=grid, warmup=warmup or get_ident() == thread, **options)

    def note(kernel: Any, key: str, signature: Any, device: Any, constants: Any, options: Any, attributes: Any,
             warmup: bool) -> Any:  # fmt: skip
        if get_ident() != thread:
            return do_compile(kernel, key, signature, device, constants, options, attributes, warmup)
        module, name, target = kernel.fn.__module__, kernel.fn.__qualname__, kernel.device_caches[device][2]

        def load() -> None:
            try:
                made = do_compile(kernel, key, signature, device, constants, options, attributes, True)
                made._init_handles()
            except TritonError as fault:
                raise RuntimeError(f"{name}: {fault}") from fault

        if (place := f"{module}.{name} {key}") not in loads:
            settle(sys.modules[module])
            loads[place] = load
            where = target.backend, target.arch, target.warp_size
            tell(Job(module, name, where, signature, constants, attributes, vars(options)))

    every.run, every._do_compile = only_prepare, note
    try:
        yield loads
    finally:
        every.run, every._do_compile = run, do_compile


class Compilers:
    """A process that imports the kernels and then becomes as many as there are jobs and cores. Start it early."""

    def __init__(self) -> None:
        most = min(MOST, max(1, len(os.sched_getaffinity(0)) - 1))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(most)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._jobs = SimpleQueue[str]()
        self._feeding = Thread(target=self._feed, name="headrace-compilers", daemon=True)
        self._feeding.start()

    def compile(self, job: Job) -> None:
        """Begin with it as soon as there is a core."""
        self._jobs.put(f"{tuple(job)}\n")

    def wait(self, seconds: float | None = None) -> bool | None:
        """Whether all that can be compiled is, and there is no more; None where that takes longer."""
        self._jobs.put("")
        self._feeding.join(seconds)
        return None if self._feeding.is_alive() else self._process.returncode == 0

    def _feed(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with suppress(BrokenPipeError), pipe:
            while line := self._jobs.get():
                pipe.write(line)
                pipe.flush()
        self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether it still takes jobs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """What is not compiled yet will not be."""
        self._process.kill()
        self.wait()


_STARTED: list[Compilers] = []
_ASKED: list[Path] = []
"""The note of what asked for an engine first."""


def begin_early(words: Sequence[str] | None = None) -> None:
    """Have `started` ones if there is a GPU and what asks has not had its kernels yet; best before torch is imported,
    as they do.

    words: what tells it from others, by default this process's command line. Files and the environment are looked at,
    for a millisecond or two, and only the first time.
    """
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1")
    if _ASKED or not seen or os.environ.get("TRITON_INTERPRET") == "1" or not GPU.exists():
        return
    _ASKED.append(note_of("asked", *(sys.argv if words is None else words)))
    if not _ASKED[0].exists() and find_spec("triton") is not None:
        _STARTED.append(Compilers())


def started() -> Compilers | None:
    """Those that were begun early and still wait for work, for one engine."""
    early = _STARTED.pop() if _STARTED else None
    return early if early is not None and early.alive else None


def have(note: Path) -> None:
    """Note that an engine's kernels are there, and that what asked for it needs nobody to begin early."""
    note.parent.mkdir(parents=True, exist_ok=True)
    for path in (note, *_ASKED):
        path.touch()


def remember() -> None:
    """Begin what a process's first launch would begin with: a hash of all of Triton, half a second of its own."""
    from triton.runtime.cache import triton_key

    Thread(target=triton_key, name="headrace-triton", daemon=True).start()


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
    signal.alarm(LONELY)
    _apart(lambda: import_module("triton.backends.nvidia.driver").CudaUtils())  # C that gcc compiles, too
    triton_key()  # remembered: all of Triton's own files are read for it
    for path in (KERNELS / "gpu").glob("[!_]*.py"):
        settle(import_module(f"headrace.kernels.gpu.{path.stem}"))
    running = 1
    for line in sys.stdin:
        signal.alarm(0)
        if running == most:
            os.wait()
            running -= 1
        _apart(lambda line=line: Job(*literal_eval(line)).compile())
        running += 1
    for _ in range(running):
        os.wait()


def _apart(work: Callable[[], object]) -> None:
    """In a process of its own. What goes wrong there is said when the kernel is launched."""
    if os.fork() == 0:
        try:
            work()
        finally:
            os._exit(0)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
    os._exit(0)  # taking torch and Triton down would take half a second, for which an engine waits
