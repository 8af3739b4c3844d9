"""One tiny engine and one server over it, for all tests of what HTTP does."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from headrace.engine.start import Started
from tests.serve.local import Running, serving, started


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Started:
    return started(tmp_path_factory.mktemp("serve") / "tiny")


@pytest.fixture(scope="session")
def server(tiny_engine: Started) -> Iterator[Running]:
    """A server without keys that every test of a file may use; nothing in it is changed for good."""
    with serving(tiny_engine) as running:
        yield running


@pytest.fixture(scope="session")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as a list of one number."""
    now = [1000.0]
    for module in ("metrics", "answer", "debug", "queue"):
        monkeypatch.setattr(f"headrace.serve.{module}.monotonic", lambda: now[0])
    return now


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs the program openssl")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([openssl, *words], check=True, capture_output=True)
    return cert, key
