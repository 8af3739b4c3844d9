"""What is put around uvicorn: heads of requests, sockets, TLS, hanging up."""

import asyncio
import json
import logging
import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from headrace.base.errors import Refused
from headrace.engine.start import Started
from headrace.serve import server as module
from headrace.serve.server import allow_files, listen, url, uvicorn_config
from headrace.serve.settings import Serve
from tests.looped import wait_for
from tests.serve.local import Running, serving
from tests.serve.reading import error, everything, posted


def talk(to: Running, raw: bytes) -> bytes:
    """Send bytes, read until the other side closes."""
    with to.connect() as client:
        client.sendall(raw)
        return everything(client)


def refused(said: bytes, status: int) -> str:
    """The message of an error object in a raw answer."""
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), said[:200]
    assert b"content-type: application/json" in head
    return json.loads(body)["error"]["message"]


@pytest.fixture(scope="module", params=["httptools", "h11"])
def tight(request: pytest.FixtureRequest, tiny_engine: Started) -> Iterator[Running]:
    """A server with small limits, with each of uvicorn's protocols."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "h11":
            patch.setattr(module, "HttpToolsProtocol", None)
        elif module.HttpToolsProtocol is None:
            pytest.skip("httptools is not installed: pip install 'headrace[fast]'")
        with serving(tiny_engine, Serve(port=0, max_header=4096, body_seconds=1)) as running:
            yield running


GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


def test_a_head_within_the_limit_is_read(tight: Running):
    assert talk(tight, GET + b"X-A: " + b"a" * 2000 + b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "head",
    [
        b"X-A: " + b"a" * 10_000 + b"\r\n",
        b"X-A: " + b"a" * 1_000_000 + b"\r\n",
        b"".join(b"X-%d: a\r\n" % i for i in range(10_000)),
        b"X-" + b"a" * 100_000 + b": a\r\n",
        b"X-A: " + b"a" * 1_000_000,  # and no end
    ],
)
def test_a_large_head_is_refused(tight: Running, head: bytes):
    try:
        said = talk(tight, GET + head + b"\r\n")
    except (ConnectionResetError, BrokenPipeError):
        said = b""  # it hung up while we were still sending
    assert not said.startswith(b"HTTP/1.1 200")
    assert httpx.get(tight.url + "/health").status_code == 200


def test_a_long_path_is_refused(tight: Running):
    said = talk(tight, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert "4096 bytes" in refused(said, 413) if b" 413 " in said[:20] else refused(said, 400)


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\nConnection: close\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    ],
)
def test_what_is_no_http_is_refused(tight: Running, raw: bytes):
    said = talk(tight, raw)
    assert said[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 413 ", b"HTTP/1.1 403 "), said[:100]
    assert said.count(b"HTTP/1.1 ") == 1
    assert b'"error"' in said


def test_a_head_that_never_ends_is_not_waited_for(tight: Running):
    with tight.connect() as one, tight.connect() as other:
        other.sendall(b"GET / HTTP/1.1\r\nX-A: ")
        for client in (one, other):
            with suppress(ConnectionResetError):
                assert everything(client) == b""


def test_a_body_that_never_comes_is_not_waited_for(tight: Running):
    assert "did not come" in refused(talk(tight, posted(b"{", "Connection: close", length=10)), 408)


def test_requests_in_a_row_are_answered_in_order(tight: Running):
    one = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    said = talk(tight, one + GET + b"\r\n")
    assert said.count(b"HTTP/1.1 200 ") == 2
    assert said.index(b'"version"') < said.index(b'"max_model_len"')


def test_a_client_that_waits_to_be_asked_for_the_body(tight: Running):
    body = b'{"prompt": "a", "max_tokens": 1}'
    with tight.connect() as client:
        client.sendall(posted(b"", "Connection: close", "Expect: 100-continue", length=len(body)))
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(body)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("stream", [True, False])
def test_whoever_hangs_up_frees_what_was_held(server: Running, stream: bool):
    """Also before the first token: then nothing has been sent to them that could fail."""
    scheduler = server.front.started.engine.scheduler
    body = json.dumps({"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": stream}).encode()
    for hold in (True, False):
        if hold:
            server.front.held.clear()
        with server.connect() as client:
            client.sendall(posted(body))
            wait_for(lambda: bool(server.front.answers))
        wait_for(lambda: not server.front.answers)
        server.front.held.set()
        wait_for(lambda: not scheduler.live)
        assert scheduler.pool.free == scheduler.pool.count


@pytest.mark.parametrize("together", [True, False])
def test_whoever_hangs_up_with_more_requests_in_line_ends_the_first_one(
    tight: Running, together: bool, caplog: pytest.LogCaptureFixture
):
    if module.HttpToolsProtocol is None:
        pytest.skip("this protocol reads no further requests meanwhile")
    body = posted(b'{"prompt": "a", "max_tokens": 200, "ignore_eos": true}')
    theirs, connections = logging.getLogger("uvicorn.error"), tight.server.server_state.connections
    theirs.addHandler(caplog.handler)
    tight.front.held.clear()
    try:
        with tight.connect() as client:
            client.sendall(body + GET + b"\r\n" if together else body)
            wait_for(lambda: bool(tight.front.answers))
            if not together:
                client.sendall(GET + b"\r\n")
            wait_for(lambda: any(one.pipeline for one in connections))
        wait_for(lambda: not tight.front.answers)
        wait_for(lambda: not tight.server.server_state.tasks)
    finally:
        tight.front.held.set()
        theirs.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_body_that_is_half_here_is_refused_when_the_server_stops(tiny_engine: Started):
    with serving(tiny_engine) as running, running.connect() as client:
        client.sendall(posted(b"{", "Connection: close", length=100))
        wait_for(lambda: bool(running.front.waits._all))
        running.front._loop.call_soon_threadsafe(running.front.waits.end)
        assert "shutting down" in refused(everything(client), 503)


class Connection:
    """One that is told to hang up."""

    def __init__(self) -> None:
        self.transport, self.aborted = self, asyncio.Event()

    def abort(self) -> None:
        self.aborted.set()


def test_an_end_waits_for_nobody_for_ever(monkeypatch: pytest.MonkeyPatch):
    """Who reads nothing is hung up on, before uvicorn would cancel tasks and fill the log."""
    monkeypatch.setattr(module, "GRACE", 0.0)

    async def run() -> None:
        ending, slow = module.Server(uvicorn_config(FastAPI(), Serve())), Connection()
        ending.server_state.connections.add(slow)  # type: ignore[arg-type]
        ending.end(False)
        await asyncio.wait_for(slow.aborted.wait(), 120)

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_whoever_leaves_while_sending_is_no_error(
    server: Running, path: str, caplog: pytest.LogCaptureFixture
):
    theirs = logging.getLogger("uvicorn.error")
    theirs.addHandler(caplog.handler)
    try:
        with server.connect() as client:
            client.sendall(posted(b"{", path=path, length=100))
            wait_for(lambda: bool(server.server.server_state.tasks))
        wait_for(lambda: not server.server.server_state.tasks)
    finally:
        theirs.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.exc_info]


def test_whoever_reads_nothing_is_hung_up_on_and_disturbs_nobody(tiny_engine: Started):
    """Their connection is closed, though there is much in its buffers that they have not read."""
    many = {"prompt": "a", "max_tokens": 240, "ignore_eos": True, "n": 8, "temperature": 1.0, "logprobs": 20}
    body = json.dumps({**many, "stream": True}).encode()
    with (
        serving(tiny_engine, Serve(port=0, send_seconds=1), buffer=4096) as running,
        socket.socket() as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(running.url.rpartition(":")[2])))
        client.sendall(posted(body))
        wait_for(lambda: bool(running.front.answers))
        assert httpx.post(running.url + "/v1/completions", json={"prompt": "a"}).status_code == 200
        wait_for(lambda: not running.server.server_state.connections and not running.front.answers)
        client.settimeout(120)
        with suppress(ConnectionResetError):
            assert b"[DONE]" not in everything(client)


def test_more_connections_are_asked_for_than_a_shell_gives():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 512), before[1]))
    try:
        allow_files()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert (soft, hard) == (min(module.FILES, hard), before[1])
        allow_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_port_that_is_taken_is_refused():
    with listen(Serve(port=0)) as taken:
        with pytest.raises(Refused, match="cannot be listened on") as found:
            listen(Serve(port=taken.getsockname()[1]))
        assert (found.value.param, "--port" in found.value.hint) == ("serve.port", True)


@pytest.mark.parametrize("host", ["192.0.2.1", "::g", "\u00fc" * 64])
def test_a_host_that_is_not_here_is_refused(host: str):
    with pytest.raises(Refused, match="cannot be listened on") as found:
        listen(Serve(port=0, host=host))
    assert (found.value.param, "--host" in found.value.hint) == ("serve.host", True)


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, "http://127.0.0.1:"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:"),
        ({"host": "::1"}, "http://[::1]:"),
    ],
)
def test_where_it_is_reached(knobs: dict[str, str], expected: str):
    try:
        sock = listen(Serve(port=0, **knobs))
    except Refused:
        pytest.skip("this machine has no IPv6")
    with sock:
        assert url(Serve(**knobs), sock) == f"{expected}{sock.getsockname()[1]}"


def test_tls(tiny_engine: Started, certificate: tuple[Path, Path]):
    cert, key = certificate
    with serving(tiny_engine, Serve(port=0, ssl_certfile=str(cert), ssl_keyfile=str(key))) as running:
        trusted = ssl.create_default_context(cafile=str(cert))
        assert httpx.get(running.url + "/v1/models", verify=trusted).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(running.url + "/v1/models")


def test_a_certificate_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(Refused) as found:
        module.check_tls(Serve(ssl_certfile=str(tmp_path / "none")))
    assert (found.value.param, "--ssl-certfile" in found.value.hint) == ("serve.ssl_certfile", True)
    assert found.value.message == f"{str(tmp_path / 'none')!r} cannot be read: No such file or directory"
    with pytest.raises(Refused):
        module.check_tls(Serve(ssl_keyfile=str(tmp_path / "none")))
    module.check_tls(Serve())


def test_no_server_header_and_no_proxy_is_believed(http: httpx.Client):
    answer = http.get("/version", headers={"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https"})
    assert "server" not in answer.headers
    error(http.get("/none"), 404)
