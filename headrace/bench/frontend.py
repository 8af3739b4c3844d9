"""What the server costs by itself: many streams over HTTP while the engine answers from a script."""

import json
import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from headrace.base.errors import Broken
from headrace.bench.result import Measure, spread

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# The front process, in a fresh interpreter: its engine is started first, then it keeps to one core itself.
_SCRIPT = """
import json, os, sys
told = json.loads(sys.argv[1])
from headrace.base.config import replace_dotted
from headrace.serve.settings import ServeConfig
from headrace.serve.supervisor import Supervisor
config = replace_dotted(ServeConfig(), told["knobs"])
words = [sys.executable, "-m", "headrace.serve.scripted", "--step-seconds=%r" % told["step"]]
os.sched_setaffinity(0, told["others"])
supervisor = Supervisor(config, words)
os.sched_setaffinity(0, [told["core"]])
from headrace.serve.run import serve
serve(config, supervisor, lambda facts, url: print(url, flush=True))
"""


@dataclass(frozen=True, slots=True)
class Work:
    """streams at a time, tokens of each, tokens per second that the engine gives to all; 0: as fast as it can."""

    streams: int
    tokens: int
    rate: float


@dataclass(slots=True)
class Seen:
    """What a run was like: seconds, processor seconds of the front process, chunks and bytes that came."""

    seconds: float = 0.0
    cpu: float = 0.0
    chunks: int = 0
    bytes: int = 0


def measure(work: Work, repeats: int) -> list[Measure]:
    """Throughput and cost of the front process on one core. Raises Broken if any answer is not complete."""
    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        with _server(Path(folder), work) as (port, process):
            _run(port, process.pid, Work(work.streams, 8, 0))
            runs = [_run(port, process.pid, work) for _ in range(repeats)]
    total = work.streams * work.tokens
    rates = [total / run.seconds for run in runs]
    tick = 1 / os.sysconf("SC_CLK_TCK")  # what processor time is counted in
    costs = [max(run.cpu, tick) / total * 1e6 for run in runs]
    return [
        Measure("throughput", median(rates), "tok/s", "higher", spread(rates)),
        Measure("processor time per token", median(costs), "us", "lower", spread(costs)),
        Measure("what one core could carry", 1e6 / median(costs), "tok/s", "higher", spread(costs)),
        Measure("chunks per token", median(run.chunks for run in runs) / total, "", "lower"),
        Measure("bytes per token", median(run.bytes for run in runs) / total, "B", "lower"),
    ]


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of single bytes, and a chat template: enough to make text of what the script answers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({piece: n for n, piece in enumerate([*SPECIALS, *alphabet])}, []))
    made.add_special_tokens(SPECIALS)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": template, "eos_token": SPECIALS[2]})
    )


@contextmanager
def _server(folder: Path, work: Work) -> "Iterator[tuple[int, subprocess.Popen[str]]]":
    cores = sorted(os.sched_getaffinity(0))
    knobs = {
        "model.path": str(folder),
        "schedule.rows": work.streams,
        "serve.port": 0,
        "serve.request_log": "off",
        "serve.drain_seconds": 0.0,
    }
    told = {"knobs": knobs, "step": work.streams / work.rate if work.rate else 0.0}
    told |= {"core": cores[0], "others": cores[1:] or cores}
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, json.dumps(told)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said:
            raise Broken("the server did not start")
        os.sched_setaffinity(0, cores[1:] or cores)  # this process only reads; it must not be in the way
        yield int(said.rpartition(":")[2]), process
    finally:
        os.sched_setaffinity(0, cores)
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _request(n: int, work: Work) -> bytes:
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": f"stream {n}"}],
            "max_tokens": work.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
    )
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


def _run(port: int, pid: int, work: Work) -> Seen:
    """All streams once, read by one thread that only counts."""
    seen = Seen()
    selector = selectors.DefaultSelector()
    tails: dict[socket.socket, bytes] = {}
    began, cpu = perf_counter(), _cpu(pid)
    for n in range(work.streams):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(_request(n, work))
        selector.register(connection, selectors.EVENT_READ)
        tails[connection] = b""
    while selector.get_map():
        for key, _ in selector.select():
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            got = connection.recv(1 << 16)
            if got:
                seen.chunks += got.count(b"data: {")
                seen.bytes += len(got)
                tails[connection] = (tails[connection] + got)[-2000:]
            else:
                selector.unregister(connection)
                connection.close()
    seen.seconds, seen.cpu = perf_counter() - began, _cpu(pid) - cpu
    whole = sum(b'"finish_reason":"length"' in tail and b"[DONE]" in tail for tail in tails.values())
    if whole < work.streams:
        raise Broken(f"{work.streams - whole} of {work.streams} streams did not end as they should")
    return seen


def _cpu(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
