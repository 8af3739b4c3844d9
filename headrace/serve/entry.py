"""What every engine process does before it is one: words, signals, and leaving when its parent has left; torch-free."""

import argparse
import faulthandler
import json
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from headrace.base.config import Config, replace_dotted
from headrace.base.errors import Fault
from headrace.base.log import setup
from headrace.serve.loop import Host, Steps
from headrace.serve.parent import leave_with_parent
from headrace.serve.wire import CANNOT_START, Facts

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
    # The folder is removed, as nobody else is left to do it.
    leave_with_parent(lambda: shutil.rmtree(given.folder, ignore_errors=True))
    host = Host(given.folder, given.number, given.fronts)
    try:
        config = replace_dotted(Config(), json.loads(given.config))
        engine, facts = build(config, tuple(json.loads(given.served)), host, given.folder)
    except Fault as fault:
        host.fail(fault)
        sys.exit(CANNOT_START)
    host.serve(engine, facts)
