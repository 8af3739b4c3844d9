"""The Hugging Face hub, played by a small local server that huggingface-hub itself talks to."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from headrace.base.errors import Refused, UnknownName
from headrace.checkpoint.huggingface import Reference, choose

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORIES = {
    "org/plain": [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "onnx/model.onnx",
        "pytorch_model.bin",
    ],
    "org/quants": ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-f16.gguf"],
    "org/gated": ["config.json", "model.safetensors"],
    "org/pickled": ["config.json", "pytorch_model.bin"],
}
ASK = """
import json, sys
from headrace.base.errors import Fault
from headrace.checkpoint.hub import find
for model in sys.argv[1:]:
    try:
        path = find(model)
        there = sorted(p.name for p in path.iterdir()) if path.is_dir() else path.read_text()
        print(json.dumps([path.name, there]))
    except Fault as fault:
        print(json.dumps([type(fault).__name__, str(fault)]))
assert "torch" not in sys.modules
"""


class Hub(BaseHTTPRequestHandler):
    """The four endpoints that a download asks: the model, its revision, its tree, and the files."""

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        repo = "/".join(path.removeprefix("api/models/").split("/")[:2])
        files = REPOSITORIES.get(repo)
        if files is None:
            self.answer(404, b"", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif "/resolve/" in path and repo == "org/gated":
            self.answer(403, b"", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif "/resolve/" in path:
            body = path.rpartition("/")[2].encode()
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            self.answer(200, body, ETag=etag, X_Repo_Commit=COMMIT)
        elif "/tree/" in path:
            tree = [
                {"type": "file", "path": f, "size": len(f.rpartition("/")[2]), "oid": "0" * 40} for f in files
            ]
            self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        elif "/revision/" in path and path.rpartition("/")[2] not in ("main", COMMIT):
            self.answer(404, b"", X_Error_Code="RevisionNotFound", X_Error_Message="Revision not found")
        else:
            siblings = [{"rfilename": file} for file in files]
            found = {
                "id": repo,
                "sha": COMMIT,
                "siblings": siblings,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            self.answer(200, json.dumps(found).encode(), Content_Type="application/json")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Tests are quiet."""


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(at: Path, endpoint: str, *models: str) -> list[list[Any]]:
    """What `find` answers for each, in a process of its own: huggingface-hub reads its settings once."""
    own = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(at / "hf"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "*",
    }
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    run = subprocess.run(
        [sys.executable, "-c", ASK, *models],
        env=clean | own,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_from_the_hub_and_again_without_it(hub: ThreadingHTTPServer, tmp_path: Path):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    wanted = ["org/plain", f"org/plain@{COMMIT}", "org/quants:q8_0", "org/quants:m-Q4_K_M.gguf"]
    first = ask(tmp_path, endpoint, *wanted)
    folder = [COMMIT, ["config.json", "model.safetensors", "tokenizer.json"]]
    assert first == [folder, folder, ["m-Q8_0.gguf"] * 2, ["m-Q4_K_M.gguf"] * 2]
    down = "http://127.0.0.1:9"
    assert ask(tmp_path, down, *wanted) == first
    (kind, message), *_ = ask(tmp_path, down, "org/gated")
    assert kind == "Unreachable"
    assert "org/gated could not be fetched" in message
    assert "HF_ENDPOINT" in message


def test_what_the_hub_refuses(hub: ThreadingHTTPServer, tmp_path: Path):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    asked = [
        "org/none",
        "org/plain@old",
        "org/gated",
        "org/pickled",
        "org/quants",
        "org/quants:Q2_K",
        "or--g/name",
    ]
    answers = ask(tmp_path, endpoint, *asked)
    kinds = ["UnknownName", "UnknownName", "Refused", "Refused", "Refused", "UnknownName", "UnknownName"]
    assert [kind for kind, _ in answers] == kinds
    said = dict(zip(asked, (message for _, message in answers), strict=True))
    assert "no model 'org/none'" in said["org/none"]
    assert "hf auth login" in said["org/gated"]
    assert "never opened" in said["org/pickled"]
    assert "m-Q4_K_M.gguf, m-Q8_0.gguf" in said["org/quants"]
    assert "no file for 'Q2_K'" in said["org/quants:Q2_K"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("Q4_K_M", "q/m-Q4_K_M.gguf"),
        ("q4_k_m", "q/m-Q4_K_M.gguf"),
        ("m-IQ4_K_M", "m-IQ4_K_M.gguf"),
        ("UD-Q8_0", "m-UD-Q8_0.gguf"),
        ("q/m-Q4_K_M.gguf", "q/m-Q4_K_M.gguf"),
    ],
)
def test_a_quantization_is_matched_as_a_whole(wanted: str, expected: str):
    files = ["q/m-Q4_K_M.gguf", "m-IQ4_K_M.gguf", "m-Q4_K_M-imat.gguf.txt", "m-Q8_0.gguf", "m-UD-Q8_0.gguf"]
    assert choose(Reference("org/m", None, wanted), files) == [expected]


def test_weights_are_taken_once_and_a_single_file_needs_no_name():
    files = ["config.json", "consolidated.safetensors", "model-1-of-1.safetensors", "a/config.json", "x.gguf"]
    assert choose(Reference("org/m"), files) == ["config.json", "model-1-of-1.safetensors"]
    assert choose(Reference("org/m"), ["config.json", "x.gguf", "mmproj-x.gguf"]) == ["x.gguf"]


def test_a_quantization_that_fits_two_or_none():
    files = ["m-Q8_0.gguf", "m-UD-Q8_0.gguf"]
    with pytest.raises(Refused, match=r"2 files that would do: m-Q8_0\.gguf, m-UD-Q8_0\.gguf"):
        choose(Reference("org/m", None, "Q8_0"), files)
    with pytest.raises(UnknownName, match="no file for '8_0'"):
        choose(Reference("org/m", None, "8_0"), files)


def test_what_is_no_reference():
    assert Reference.parse("name") is None
    assert Reference.parse("a/b/c") is None
    assert Reference.parse("a b/c") is None
    assert Reference.parse("a/b:") is None
