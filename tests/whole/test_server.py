"""`headrace serve` from its start to its end, as somebody at a terminal or an orchestrator sees it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.looped import gone, wait_for
from tests.serve.reading import error, frames, text
from tests.whole.offered import KEY_NAMES, READY, Offered, children, model, offered

LONG = {"prompt": "abc", "max_tokens": 200, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("server") / "tiny")


def test_it_says_what_it_is_and_where(folder: Path):
    seen: set[int] = set()
    with offered(folder) as server:
        while not READY.search(server.said):
            seen |= health(server.process.pid)
            time.sleep(0.1)
        assert seen <= {200, 503}  # until it is ready it says that it is not
        said = httpx.get(f"{server.url}/v1/models").json()
        assert [one["id"] for one in said["data"]] == ["tiny"]
        assert said["data"][0]["max_model_len"] == 4096
        assert_nothing_else_listens(server)
        refused = start(folder, "--port", server.url.rpartition(":")[2])
        assert refused.returncode == 2
        assert "cannot be listened on" in refused.stderr
    found = READY.search(server.said)
    assert found is not None
    assert found[1] == "tiny"
    assert 0 < float(found[3]) < 120
    for word in ("plan", "llama", "float32", "memory", "KV cache", "weights", "MiB"):
        assert word in server.said
    assert "stopping" in server.said


def test_requests_that_run_come_to_their_end(folder: Path):
    """SIGTERM lets a stream finish; what comes after it is told to go elsewhere; the process ends with 0."""
    with offered(folder) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        whole = client.post("/v1/completions", json=LONG).json()["choices"][0]["text"]
        (engine,) = children(server.process.pid)
        with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
            lines = response.iter_lines()
            first = next(lines)
            os.kill(engine, signal.SIGSTOP)  # or the stream might have ended before all has been looked at
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 503)
            assert httpx.get(f"{server.url}/health/live").status_code == 200
            refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"})
            os.kill(engine, signal.SIGCONT)
            error(refused, 503)
            assert int(refused.headers["retry-after"]) >= 1
            rest = "".join(f"{line}\n" for line in [first, *lines])
        found = frames(httpx.Response(200, headers=response.headers, text=rest))
        assert text(found) == whole
        assert server.process.wait(120) == 0


def test_what_does_not_end_in_time_is_told_so(folder: Path):
    with (
        offered(folder, "--drain-seconds", "0.2") as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        with client.stream(
            "POST", "/v1/completions", json={**LONG, "max_tokens": 3000, "stream": True}
        ) as response:
            lines = response.iter_lines()
            first = next(lines)
            server.process.send_signal(signal.SIGTERM)
            *_, fault, empty, done, last = [first, *lines]
        assert (empty, done, last) == ("", "data: [DONE]", "")
        assert json.loads(fault.removeprefix("data: "))["error"]["code"] == 503
        assert server.process.wait(120) == 0


def test_a_second_signal_ends_it_at_once(folder: Path):
    with offered(folder) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        with client.stream(
            "POST", "/v1/completions", json={**LONG, "max_tokens": 3000, "stream": True}
        ) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: "stopping" in server.said)
            server.process.send_signal(signal.SIGINT)
            assert "503" in "".join(lines)
        assert server.process.wait(120) == 0


def test_several_processes_behind_one_port_of_which_nothing_is_left_if_one_is_killed(folder: Path):
    words = ["--port", "0", "--threads", "1", "--memory.kv-blocks", "64", "--workers", "2"]
    it = Offered([str(folder), *words], {"HEADRACE_API_KEY": "key"})
    try:
        url, headers = it.url, {"Authorization": "Bearer key"}
        wait_for(lambda: len(children(it.process.pid)) == 2)
        said: list[str] = []

        def answered() -> int:
            answer = httpx.post(f"{url}/v1/completions", json={**LONG, "max_tokens": 4}, headers=headers)
            assert answer.status_code in (200, 503)  # the second may still be loading
            said.extend(choice["text"] for choice in answer.json().get("choices", ()))
            return len(said) >= 8

        wait_for(answered)
        assert len(set(said)) == 1
        assert "key" not in Path(f"/proc/{it.process.pid}/cmdline").read_text()
        workers = children(it.process.pid)
        it.process.kill()
        it.process.wait()
        wait_for(lambda: all(gone(pid) for pid in workers))
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
    finally:
        it.close()


def health(pid: int) -> set[int]:
    """What /health says now on every port the process listens on."""
    ports = [line.split()[3].rpartition(":")[2] for line in sockets("-Htlnp") if pid in pids(line)]
    found: set[int] = set()
    for port in ports:
        try:
            found.add(httpx.get(f"http://127.0.0.1:{port}/health").status_code)
        except httpx.TransportError:
            continue
    return found


def assert_nothing_else_listens(server: Offered) -> None:
    """One TCP socket, on the loopback; the others are files that only we can reach. No process holds a key."""
    ours = {server.process.pid, *children(server.process.pid)}
    tcp = [line for line in sockets("-Htlnp") if pids(line) & ours]
    assert [line.split()[3] for line in tcp] == [server.url.removeprefix("http://")]
    assert not [line for line in sockets("-Hulnp") if pids(line) & ours]
    files = [line.split()[4] for line in sockets("-Hxlnp") if pids(line) & ours]
    assert files
    for file in map(Path, files):
        assert file.parent.stat().st_mode & 0o777 == 0o700
        assert file.parent.stat().st_uid == os.getuid()


def sockets(words: str) -> list[str]:
    return subprocess.run(["ss", words], capture_output=True, text=True).stdout.splitlines()


def pids(line: str) -> set[int]:
    return {int(number) for number in re.findall(r"pid=(\d+)", line)}


def start(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """A server that is to be refused."""
    command = [sys.executable, "-m", "headrace", "serve", str(folder), *words]
    environ = {name: value for name, value in os.environ.items() if name not in KEY_NAMES}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ssl-certfile", "none.pem"], "'none.pem' cannot be read"),
        (["--model", "other"], "two models are given"),
        (["--schedule.tokens", "1", "--max-len", "100000000"], "error:"),
        (["--max-len", "0"], "at least 1"),
        (["--prot", "1"], "--prot"),
    ],
)
def test_what_cannot_be_offered_is_refused_and_nothing_is_left(folder: Path, words: list[str], said: str):
    done = start(folder, "--port", "0", *words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
