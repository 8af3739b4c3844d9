"""Keys, hosts, and that no route is forgotten."""

import hmac
import os
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from headrace.base.errors import Denied, Forbidden, Refused
from headrace.engine.start import Started
from headrace.serve import auth
from headrace.serve.auth import ADMIN_KEY, API_KEY, Door
from headrace.serve.page import OPEN as PAGE
from headrace.serve.settings import Serve
from tests.serve.local import Running, serving
from tests.serve.reading import error, everything

KEYS = {API_KEY: "key-one,key-two", ADMIN_KEY: "admin-key"}


def door(environ: dict[str, str] | None = None, **knobs: object) -> Door:
    return Door(Serve(**knobs), PAGE, environ or {})  # type: ignore[arg-type]


def fault(at: Door, path: str = "/v1/models", key: str | None = None, host: str = "localhost:8000") -> object:
    headers = [(b"host", host.encode())]
    if key is not None:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    return type(at.fault(path, headers))


NONE = type(None)


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch):
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def watched(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr("headrace.serve.auth.hmac.compare_digest", watched)
    keys = auth.Keys(["a" * 5, "b" * 50, "c"])
    assert keys.know("a" * 5)
    assert not keys.know("d")
    assert len(compared) == 6  # all of them, also behind the one that fits
    assert {len(part) for pair in compared for part in pair} == {32}


def test_without_keys_nobody_is_asked():
    at = door()
    assert fault(at) is NONE
    assert fault(at, "/debug/live") is NONE
    assert fault(at, key="") is NONE  # as lm-eval sends it
    assert fault(at, key="anything") is NONE


def test_with_keys_everybody_is():
    at = door(KEYS)
    assert fault(at) is Denied
    assert fault(at, key="wrong") is Denied
    assert fault(at, key="key-on") is Denied
    assert fault(at, key="key-one") is NONE
    assert fault(at, key="key-two") is NONE
    assert fault(at, key="admin-key") is NONE
    assert fault(at, "/health/live") is NONE
    unseen = ("/nope", "", "/health/live/", "//health/live", "/Health/live")
    for path in ("/health", "/metrics", "/version", "/docs", "/openapi.json", *unseen):
        assert fault(at, path) is Denied, path


def test_control_needs_a_key_of_its_own():
    at = door(KEYS)
    assert fault(at, "/debug/live") is Denied
    assert fault(at, "/debug/live", "key-one") is Forbidden
    assert fault(at, "/debug/live", "wrong") is Denied
    assert fault(at, "/debug/live", "admin-key") is NONE
    assert fault(door({API_KEY: "key-one"}), "/debug/live", "key-one") is Forbidden
    assert fault(door({ADMIN_KEY: "admin-key"}), "/debug/live") is Denied
    assert fault(door({ADMIN_KEY: "admin-key"}), "/v1/models") is NONE
    assert fault(door(host="0.0.0.0", insecure=True), "/debug/live") is Forbidden


def test_paths_may_be_opened_but_not_control():
    at = door(KEYS, open_paths="/health, /metrics")
    assert fault(at, "/health") is NONE
    assert fault(at, "/metrics") is NONE
    assert fault(at, "/health/ready") is Denied
    for bad in ("/debug", "/debug/", "/debug/live", "metrics"):
        with pytest.raises(Refused, match="expected a path") as caught:
            door(KEYS, open_paths=bad)
        assert "--open-paths" in caught.value.hint


def test_what_the_page_is_made_of_is_open_and_nothing_behind_it():
    at = door(KEYS)
    assert fault(at, "/") is NONE
    assert fault(at, "/page/app.js") is NONE
    assert fault(at, "/pages") is Denied
    assert fault(Door(Serve(), (), KEYS), "/") is Denied


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (b"Bearer abc", "abc"),
        (b"bearer  abc ", "abc"),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"abc", None),
        (b"", None),
        (b"Basic " + b64encode(b"any:abc"), "abc"),
        (b"Basic " + b64encode(b":a:b"), "a:b"),
        (b"Basic " + b64encode(b"abc"), None),
        (b"Basic !!!", None),
        (b"Basic " + b64encode(b"\xff:\xff"), None),
        (b"Digest abc", None),
        (b"Bearer \xff\xfe", "\xff\xfe"),
    ],
)
def test_the_key_in_a_header(header: bytes, key: str | None):
    assert auth.credential(header) == key


def test_any_header_is_survived():
    at = door(KEYS)
    for raw in (b"\xff\xfe\x00", b"Bearer \xc3\x28", b"Bearer " + b"a" * 60000):
        assert isinstance(at.fault("/v1/models", [(b"host", b"localhost"), (b"authorization", raw)]), Denied)


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True),
        ("localhost:8000", True),
        ("LOCALHOST.", True),
        ("a.localhost:1", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("[::1]", True),
        ("192.168.1.7:80", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("\xff", False),
    ],
)
def test_a_name_that_somebody_elses_dns_could_give_us_is_refused(host: str, known: bool):
    headers = [(b"host", host.encode("latin-1"))]
    assert (door().fault("/v1/models", headers) is None) is known


def test_further_names_may_be_allowed_and_with_keys_names_do_not_matter():
    assert fault(door(allowed_hosts="llm.example"), host="llm.example:80") is NONE
    assert fault(door(allowed_hosts="llm.example"), host="other.example") is Forbidden
    assert fault(door(KEYS), host="llm.example", key="key-one") is NONE
    assert fault(door(KEYS, allowed_hosts="llm.example"), host="other.example", key="key-one") is Forbidden


def test_a_network_is_not_listened_on_without_a_key():
    for host in ("0.0.0.0", "::", "192.168.1.7", "llm.example"):
        with pytest.raises(Refused, match="can be reached from a network") as found:
            door(host=host)
        assert "--insecure" in found.value.hint
        assert door(host=host, insecure=True)
        assert door(KEYS, host=host)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("x", False),
    ],
)
def test_what_only_this_machine_reaches(host: str, here: bool):
    assert auth.is_loopback(host) is here


def test_keys_come_from_flag_file_and_environment(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("# ours\n three \n\nfour\n")
    assert auth.read_keys("one,two", str(file), "five") == ["one", "two", "five", "three", "four"]
    assert auth.read_keys(None, None, None) == []
    at = Door(Serve(api_key="one", api_key_file=str(file)), (), {API_KEY: "five"})
    assert all(at.api.know(key) for key in ("one", "three", "four", "five"))


@pytest.mark.parametrize("text", ["", "# none\n", "two words\n", "\u00e9\n", "\x01\n"])
def test_a_file_without_a_usable_key_is_refused(tmp_path: Path, text: str):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(Refused):
        auth.read_keys(None, str(file), None)


def test_a_file_of_keys_may_be_a_pipe_but_not_endless():
    ours, theirs = os.pipe()
    os.write(theirs, b"# of a shell's <(...)\none\ntwo\n")
    os.close(theirs)
    assert auth.read_keys(None, f"/dev/fd/{ours}", None) == ["one", "two"]
    os.close(ours)
    with pytest.raises(Refused, match="more than 1,048,576 characters"):
        auth.read_keys(None, "/dev/zero", None)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    for knob, flag in (("api_key_file", "--api-key-file"), ("admin_key_file", "--admin-key-file")):
        with pytest.raises(Refused, match="cannot be read: No such file or directory") as caught:
            Door(Serve(**{knob: str(tmp_path / "none")}), (), {})
        assert (caught.value.param, flag in caught.value.hint) == (f"serve.{knob}", True)


@pytest.fixture(scope="module")
def guarded(tiny_engine: Started) -> Iterator[Running]:
    settings = Serve(port=0, api_key="key-one", admin_key="admin-key")
    with serving(tiny_engine, settings) as running:
        yield running


def paths(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    """(method, path) of every route, those of included routers too."""
    for route in routes:
        inner = vars(route).get("original_router") or vars(route).get("app")
        if isinstance(route, APIRoute):
            yield from ((method, route.path) for method in route.methods or ())
        elif inner is not None and vars(inner).get("routes"):
            yield from paths(inner.routes)


def test_no_route_is_forgotten(guarded: Running):
    found = set(paths(guarded.app.router.routes))
    assert {"/v1/chat/completions", "/v1/completions", "/tokenize", "/health", "/docs"} <= {
        path for _, path in found
    }
    with httpx.Client(base_url=guarded.url) as client:
        for method, path in [*sorted(found), ("GET", "/openapi.json")]:
            answer = client.request(method, path.replace("{", "").replace("}", "").replace(":path", ""))
            if path in auth.OPEN or path == "/" or path.startswith("/page/"):
                assert answer.status_code in (200, 404), path
            elif method == "HEAD":
                assert answer.status_code == 401, path
            else:
                said = error(answer, 401)
                assert (said["type"], said["code"]) == ("invalid_request_error", "invalid_api_key")
                assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "target",
    [
        b"//v1/models",
        b"/v1/../v1/models",
        b"/health/live/../../v1/models",
        b"/page/../v1/models",
        b"/page/%2e%2e/v1/models",
        b"/%76%31/models",
        b"/v1%2fmodels",
        b"/v1/models/",
        b"/V1/models",
        b"/v1/models?/health/live",
        b"/v1/models#/health/live",
        b"http://localhost/v1/models",
        b"/v1/models;/health/live",
        b"/health/live%00/../v1/models",
        b"/debug/live",
    ],
)
def test_no_spelling_of_a_path_gets_past_the_keys(guarded: Running, target: bytes):
    with guarded.connect() as client:
        head = b"Host: localhost\r\nX-Original-URL: /health/live\r\nX-Forwarded-Prefix: /health/live\r\n"
        client.sendall(b"GET " + target + b" HTTP/1.1\r\n" + head + b"Connection: close\r\n\r\n")
        said = everything(client)
    assert said.split(b" ")[1] in (b"400", b"401", b"404")
    assert b'"data"' not in said
    assert b"uptime" not in said


def test_a_key_opens(guarded: Running):
    with httpx.Client(base_url=guarded.url) as client:
        assert client.get("/v1/models", headers={"Authorization": "Bearer key-one"}).status_code == 200
        assert client.get("/v1/models", auth=("me", "key-one")).status_code == 200


def test_a_browser_is_asked_for_the_key(guarded: Running):
    answer = httpx.get(guarded.url + "/docs", headers={"Accept": "text/html,*/*"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic ")


def test_admin_paths():
    assert auth.is_admin("/debug")
    assert auth.is_admin("/debug/requests/1")
    assert not auth.is_admin("/debugging")
