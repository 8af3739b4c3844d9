"""What every engine process does before it is one: words, signals, and leaving when its parent has left; torch-free."""

import argparse
import ctypes
import faulthandler
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

from headrace.base.config import Config, replace_dotted
from headrace.base.errors import Fault
from headrace.base.log import setup
from headrace.serve.loop import Host, Steps
from headrace.serve.wire import CANNOT_START, Facts

PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>: the signal that a process gets when the thread that started it ends."""

Build = Callable[[Config, tuple[str, ...], Host, Path], tuple[Steps, Facts]]
"""Makes the engine: config, names for clients, whom to tell how far it is, folder shared with the fronts."""


def run(words: Sequence[str], build: Build) -> None:
    """Be an engine process until the parent leaves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="where the fronts' sockets are")
    parser.add_argument("--number", type=int, required=True, help="how many engines were started before")
    parser.add_argument("--fronts", type=int, required=True, help="how many fronts there are")
    parser.add_argument("--config", required=True, help="the engine's knobs as JSON")
    parser.add_argument("--served", required=True, help="names for clients as JSON")
    given = parser.parse_args(words)
    setup("warning")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front decides when to stop
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    _leave_with_parent(given.folder)
    host = Host(given.folder, given.number, given.fronts)
    try:
        config = replace_dotted(Config(), json.loads(given.config))
        engine, facts = build(config, tuple(json.loads(given.served)), host, given.folder)
    except Fault as fault:
        host.fail(fault)
        sys.exit(CANNOT_START)
    host.serve(engine, facts)


def _leave_with_parent(folder: Path) -> None:
    """Standard input is a pipe that nobody writes to: it ends when the parent does, however that was.

    The folder is removed, as nobody else is left to do it. A process that is stopped would not notice; on Linux the
    kernel is asked to have it go on.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)

    def wait() -> None:
        while os.read(0, 1024):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    Thread(target=wait, name="headrace-parent", daemon=True).start()
