"""A further front process: `python -m headrace.serve.worker`, started by workers.py, told all by standard input."""

import json
import socket
import sys
from pathlib import Path

from headrace.base.config import replace_dotted
from headrace.base.log import setup
from headrace.base.loop import runner
from headrace.serve.frontend import Frontend
from headrace.serve.parent import leave_with_parent
from headrace.serve.run import answer
from headrace.serve.settings import ServeConfig


async def work(config: ServeConfig, folder: Path, number: int, sock: socket.socket) -> None:
    """Answer until told to stop."""
    await answer(config, Frontend(folder, config.serve, number), sock, folder)


def main() -> None:
    words = json.loads(sys.stdin.buffer.readline())
    setup("warning")
    leave_with_parent()
    config = replace_dotted(ServeConfig(), words["knobs"])
    with runner() as loop:
        loop.run(work(config, Path(words["folder"]), words["number"], socket.socket(fileno=words["fd"])))


if __name__ == "__main__":
    main()
