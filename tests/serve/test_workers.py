"""Further front processes: their deaths."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.base.errors import Fault
from headrace.serve import workers
from tests.looped import wait_for
from tests.serve.scripted import config, until


def test_a_worker_that_dies_before_anybody_listens_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And given up where it will not live: the deaths from before the loop count."""
    begin, begun = subprocess.Popen, []

    def mortal(words: list[str], **more: Any) -> "subprocess.Popen[bytes]":
        begun.append(begin([sys.executable, "-c", "input(); raise SystemExit(3)"], **more))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", mortal)

    async def run() -> Fault:
        faults: list[Fault] = []
        made = workers.Workers(config(serve__workers=2), tmp_path, sock)
        wait_for(lambda: made._endings._ended)
        made.attach(faults.append)
        await until(lambda: faults)
        made.stop()
        return faults[0]

    with socket.socket() as sock:
        assert "died 3 times" in asyncio.run(run()).message
    assert len(begun) == workers.SHORT_LIVES
