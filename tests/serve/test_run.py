"""Whole servers with a scripted engine, as processes: signals, several front processes, nobody left behind."""

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace.bench.frontend import write_tokenizer
from tests.looped import gone, state, wait_for
from tests.serve.reading import posted
from tests.serve.scripted import command, held

HEADERS = {"Content-Type": "application/json", "Connection": "close"}
ROOT = Path(__file__).parents[2]
SERVER = """
import json, sys
from headrace.base.config import replace_dotted
from headrace.base.errors import Fault
from headrace.base.log import setup
from headrace.serve.settings import ServeConfig
from headrace.serve.supervisor import Supervisor
knobs, scripted = json.loads(sys.argv[1])
setup("warning")
supervisor = Supervisor(replace_dotted(ServeConfig(), knobs), scripted)
from headrace.serve.run import serve
def said(facts, url):
    print(supervisor.engine.pid, url.rpartition(":")[2], flush=True)
try:
    serve(replace_dotted(ServeConfig(), knobs), supervisor, said)
except Fault as fault:
    sys.exit(fault.message)
"""


class Server:
    """A running server: its process, the engine's, which is not started while there is a file `gate`, and the port."""

    def __init__(self, folder: Path, step: float, gate: Path, **knobs: Any):
        changes = {name.replace("__", "."): value for name, value in knobs.items()}
        changes = {"model.path": str(folder), "serve.port": 0, "serve.request_log": "off", **changes}
        words = [sys.executable, "-c", SERVER, json.dumps([changes, held(gate, command(step))])]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        self.engine, self.port = map(int, said.split()) if said else (0, 0)

    def ask(self, prompt: str, tokens: int, stream: bool = False) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = {
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": stream,
        }
        connection.request("POST", "/v1/completions", json.dumps(body), HEADERS)
        return connection.getresponse()

    def text(self, prompt: str, tokens: int) -> str:
        """What the model says; whoever is asked may not be ready yet."""
        said: list[str] = []

        def answered() -> bool:
            answer = self.ask(prompt, tokens)
            body = json.loads(answer.read())
            assert answer.status in (200, 503)
            said.extend(choice["text"] for choice in body.get("choices", ()))
            return bool(said)

        wait_for(answered)
        return said[0]

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers=HEADERS)
        response = connection.getresponse()
        return response.status, response.read().decode()

    def ready(self) -> int:
        return self.get("/health/ready")[0]

    def count(self, name: str, label: str = "") -> float:
        """What /metrics says of a series, found by a part of its labels."""
        status, text = self.get("/metrics")
        assert status == 200, text
        found = re.search(rf"^{name}{{[^}}]*{label}[^}}]*}} (\S+)$", text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    def children(self) -> list[int]:
        """Processes this one has started."""
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return [int(line) for line in found.stdout.split()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words")
    write_tokenizer(path)
    return path


@contextmanager
def server(folder: Path, step: float = 0.002, gate: Path = Path("none"), **knobs: Any) -> Iterator[Server]:
    made = Server(folder, step, gate, **knobs)
    try:
        assert made.port, made.process.stderr.read() if made.process.stderr else ""
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        for stream in (made.process.stdout, made.process.stderr):
            if stream is not None:
                stream.close()


def frames(response: http.client.HTTPResponse) -> list[Any]:
    """What a stream says, up to [DONE] or its end."""
    lines = [line[6:] for line in response.read().decode().split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_several_front_processes_answer_on_one_port(folder: Path):
    with server(folder, 0.001, serve__workers=3) as one:
        children = one.children()
        assert len(children) == 3, "the engine and two further fronts"
        fronts = [one.process.pid, *(pid for pid in children if pid != one.engine)]
        said = []
        for pid in fronts:
            with alone(pid, fronts):
                said.append(one.text("x", 20))
        assert len(set(said)) == 1
        # an answer may reach its asker before it is counted
        wait_for(lambda: one.count("vllm:request_success_total", "length") == 3)
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(30) == 0
        wait_for(lambda: all(gone(pid) for pid in children))
        assert one.process.stderr is not None
        assert one.process.stderr.read().count("stopping") == 1


@contextmanager
def alone(pid: int, fronts: Iterable[int]) -> Iterator[None]:
    """Only this front takes connections: the others are stopped meanwhile."""
    others = [other for other in fronts if other != pid]
    try:
        for other in others:
            os.kill(other, signal.SIGSTOP)
            wait_for(lambda pid=other: state(pid) == "T")
        yield
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


def told(asked: Iterable[socket.socket]) -> list[int]:
    """When those who have been refused so far may come back."""
    said = [sock.recv(4096, socket.MSG_PEEK) for sock in select.select(asked, [], [], 0)[0]]
    found = [re.search(rb"retry-after: (\d+)\r\n", answer) for answer in said if b" 429 " in answer]
    return [int(match[1]) if match else 0 for match in found]


def test_the_queue_is_one_for_all_fronts(folder: Path):
    """Two of them get 15 requests each, where 20 have a place."""
    limits = {"serve__workers": 2, "schedule__rows": 4, "serve__queue": 16}
    with server(folder, 0.02, **limits) as one, ExitStack() as open_ones:
        fronts = [one.process.pid, *(pid for pid in one.children() if pid != one.engine)]
        for pid in fronts:
            with alone(pid, fronts):
                one.text("x", 1)  # it is ready
        for pid, (kept, refused) in zip(fronts, ((15, 0), (20, 10)), strict=True):
            with alone(pid, fronts):
                asked = [open_ones.enter_context(endless(one.port)) for _ in range(15)]
                wait_for(lambda n=refused: one.count("vllm:admission_rejections_total", "queued_reqs") == n)
                wait_for(lambda n=kept: streams(one) == n)
                wait_for(lambda asked=asked, n=refused: len(told(asked)) == n)
                assert all(seconds >= 1 for seconds in told(asked))


def test_a_front_shows_and_cancels_what_another_one_answers(folder: Path):
    with server(folder, 0.02, serve__workers=2) as one, ExitStack() as open_ones:
        fronts = [one.process.pid, *(pid for pid in one.children() if pid != one.engine)]
        with alone(fronts[1], fronts):
            one.text("x", 1)
            theirs = open_ones.enter_context(endless(one.port))
            wait_for(lambda: streams(one) == 1)
        ours = open_ones.enter_context(closing(http.client.HTTPConnection("127.0.0.1", one.port, timeout=60)))
        with alone(fronts[0], fronts):
            ours.connect()
            assert debug(ours, "GET", "/debug/live")["rows"] == [], "the one that has it is stopped"
        # a front that is slow to answer another one is left out: who wants to know asks again
        rows: list[Any] = []
        wait_for(lambda: rows.extend(debug(ours, "GET", "/debug/live")["rows"]) or rows)
        id = rows[0]["id"]
        wait_for(lambda: debug(ours, "GET", f"/debug/requests/{id}").get("state") == "decode")
        wait_for(lambda: debug(ours, "POST", f"/debug/requests/{id}/cancel") and streams(one) == 0)
        wait_for(lambda: causes(ours, id) == ["abort"])
        assert b'"finish_reason":"abort"' in everything(theirs)


def streams(one: Server) -> float:
    """How many answers are open."""
    return one.count("headrace_streams")


def causes(connection: http.client.HTTPConnection, id: str) -> list[str]:
    """How a request ended, as often as that is told."""
    ended = debug(connection, "GET", "/debug/requests")["ended"]
    return [found["cause"] for found in ended if found["id"] == id]


def debug(connection: http.client.HTTPConnection, method: str, path: str) -> Any:
    """What a path says on a connection that stays open."""
    connection.request(method, path)
    return json.loads(connection.getresponse().read())


def everything(sock: socket.socket) -> bytes:
    """What comes on a connection until the end of a stream."""
    said = b""
    while not said.endswith(b"0\r\n\r\n"):
        said += sock.recv(65536)
    return said


def endless(port: int) -> socket.socket:
    """A connection on which a long stream was asked for."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    body = {"prompt": "abc", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    sock.sendall(posted(json.dumps(body).encode()))
    return sock


def test_a_front_process_that_dies_is_replaced(folder: Path):
    with server(folder, 0.001, serve__workers=2) as one:
        (worker,) = [pid for pid in one.children() if pid != one.engine]
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: worker not in one.children() and len(one.children()) == 2)
        assert len({one.text("x", 20) for _ in range(10)}) == 1


def test_whoever_waits_at_a_further_front_is_told_that_the_engine_is_given_up(folder: Path):
    limits = {"serve__workers": 2, "serve__restarts": 0, "serve__drain_seconds": 1000.0}
    with server(folder, 0.02, **limits) as one, ExitStack() as open_ones:
        fronts = [one.process.pid, *(pid for pid in one.children() if pid != one.engine)]
        with alone(fronts[1], fronts):
            one.text("x", 1)
            asked = open_ones.enter_context(endless(one.port))
            wait_for(lambda: streams(one) == 1)
        os.kill(one.engine, signal.SIGKILL)
        assert b'"code":503' in b"".join(iter(lambda: asked.recv(65536), b""))
        assert one.process.wait(60) == 1


def test_nobody_outlives_a_server_that_is_killed(folder: Path):
    with server(folder, serve__workers=2) as one:
        children = one.children()
        assert len(children) == 2
        fronts = [one.process.pid, *(pid for pid in children if pid != one.engine)]
        with alone(fronts[1], fronts):
            one.text("x", 1)  # it has begun
        for child in children:  # one that is stopped would not notice by itself
            os.kill(child, signal.SIGSTOP)
            wait_for(lambda pid=child: state(pid) == "T")
        one.process.kill()
        wait_for(lambda: all(gone(pid) for pid in children))


def texts(one: Server, count: int, tokens: int, meanwhile=lambda: None) -> list[str]:
    """Texts of streams that run at the same time, and what is to happen when each has begun."""
    found = [""] * count
    begun = threading.Barrier(count + 1)

    def client(n: int) -> None:
        answer = one.ask(f"stream {n}", tokens, stream=True)
        begun.wait(120)
        said = frames(answer)
        assert said[-1] == "[DONE]"
        found[n] = "".join(frame["choices"][0]["text"] for frame in said[:-1] if frame["choices"])

    threads = [threading.Thread(target=client, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    begun.wait(120)
    meanwhile()
    for thread in threads:
        thread.join()
    return found


def test_sixty_four_readers_notice_nothing_but_a_pause_when_the_engine_is_killed(folder: Path):
    with server(folder, 0.005) as one:
        calm = texts(one, 64, 200)
        assert all(calm)
        assert texts(one, 64, 200, lambda: os.kill(one.engine, signal.SIGKILL)) == calm
        wait_for(lambda: one.count("headrace_engine_restarts_total") == 1)
        wait_for(lambda: one.children() != [one.engine])


def test_an_engine_that_is_stopped_makes_readiness_503_and_is_replaced(folder: Path, tmp_path: Path):
    gate = tmp_path / "gate"
    with server(folder, 0.005, gate, serve__stall_seconds=2.0) as one:
        calm = texts(one, 4, 200)

        def stop() -> None:
            gate.touch()
            os.kill(one.engine, signal.SIGSTOP)
            wait_for(lambda: one.ready() == 503)
            gate.unlink()
            wait_for(lambda: one.ready() == 200)

        assert texts(one, 4, 200, stop) == calm
        wait_for(lambda: gone(one.engine))
