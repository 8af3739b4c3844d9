"""A further front process: `python -m headrace.serve.worker`, started by workers.py, told all by standard input."""

import json
import os
import socket
import sys
from pathlib import Path
from threading import Thread

from headrace.base.config import replace_dotted
from headrace.base.log import setup
from headrace.base.loop import runner
from headrace.serve.frontend import Frontend
from headrace.serve.run import answer
from headrace.serve.settings import ServeConfig


async def work(config: ServeConfig, folder: Path, number: int, sock: socket.socket) -> None:
    """Answer until told to stop."""
    await answer(config, Frontend(folder, config.serve, number), sock, folder)


def main() -> None:
    words = json.loads(sys.stdin.buffer.readline())
    setup("warning")
    Thread(target=_leave_with_parent, daemon=True).start()
    config = replace_dotted(ServeConfig(), words["knobs"])
    with runner() as loop:
        loop.run(work(config, Path(words["folder"]), words["number"], socket.socket(fileno=words["fd"])))


def _leave_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
