"""The page's files: who gets them, with which headers, and that nothing of them comes from or goes elsewhere."""

import gzip
import hashlib
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from headrace.serve import page

FOLDER = page.FOLDER
VENDOR = FOLDER / "vendor"
OURS = [path for path in sorted(FOLDER.rglob("*")) if path.is_file() and VENDOR not in path.parents]
INDEX = (FOLDER / "index.html").read_text()


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(page.router)
    return TestClient(app)


def name(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def test_the_page_and_all_its_parts_are_there(client: TestClient):
    assert client.get("/").text == INDEX
    for path in OURS:
        answer = client.get(f"/page/{name(path)}")
        assert answer.status_code == 200
        assert answer.content == path.read_bytes()
        assert answer.headers["content-type"] == page.KINDS[path.suffix]


@pytest.mark.parametrize(
    "path", ["/", "/page/js/main.js", "/page/vendor/marked-18.2.1/marked.esm.js", "/page/no.js"]
)
def test_every_answer_forbids_what_is_not_ours(client: TestClient, path: str):
    headers = client.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert (
        policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["img-src"] == "'self'"
    )
    assert policy["require-trusted-types-for"] == "'script'"
    assert not re.search(r"unsafe|\*|https?:|data:|blob:", headers["content-security-policy"])
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    "path",
    [
        "/page/../page.py",
        "/page/%2e%2e/page.py",
        "/page/..%2fpage.py",
        "/page/%2e%2e%2f%2e%2e%2fbase%2ferrors.py",
        "/page/js/../../page.py",
        "/page//etc/passwd",
        "/page/%2fetc%2fpasswd",
        "/page/..\\page.py",
        "/page/js",
        "/page/js/",
        "/page/index.html%00.js",
        "/page/vendor/README.md",
        "/page/INDEX.HTML",
        "/page/",
    ],
)
def test_only_the_page_is_given_out(client: TestClient, path: str):
    answer = client.get(path)
    assert answer.status_code == 404
    assert "page.py" not in answer.text
    assert "import" not in answer.text


def test_a_file_that_is_not_there_is_an_error_object(client: TestClient):
    error = client.get("/page/none.js").json()["error"]
    assert error["code"] == 404
    assert error["type"] == "NotFoundError"


def test_what_is_known_is_not_sent_again(client: TestClient):
    first = client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f'"other", W/{tag}'):
        again = client.get("/", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert "content-security-policy" in again.headers
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_library_is_kept_for_ever_because_its_version_is_in_its_name(client: TestClient):
    path = next(VENDOR.glob("marked-*/marked.esm.js"))
    assert "immutable" in client.get(f"/page/{name(path)}").headers["cache-control"]
    assert all(re.search(r"-\d+\.\d+\.\d+$", folder.name) for folder in VENDOR.iterdir() if folder.is_dir())


@pytest.mark.parametrize(
    ("header", "packed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=0.0", False),
        ("", False),
        ("br", False),
    ],
)
def test_packed_for_those_who_take_it(client: TestClient, header: str, packed: bool):
    with client.stream("GET", "/page/css/base.css", headers={"Accept-Encoding": header}) as answer:
        body = b"".join(answer.iter_raw())
    assert (answer.headers.get("content-encoding") == "gzip") == packed
    assert (gzip.decompress(body) if packed else body) == (FOLDER / "css" / "base.css").read_bytes()
    assert answer.headers["vary"] == "Accept-Encoding"


def test_head_has_the_headers_of_get(client: TestClient):
    for path in ("/", "/page/js/main.js"):
        got, head = client.get(path), client.head(path)
        assert head.content == b""
        assert head.headers == got.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_the_page_is_only_read(client: TestClient, method: str):
    assert client.request(method, "/").status_code == 405


def test_the_page_is_not_part_of_the_api(client: TestClient):
    assert client.get("/openapi.json").json()["paths"] == {}


@pytest.mark.parametrize("path", OURS, ids=name)
def test_our_files_are_short_and_name_no_other_host(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    hosts = set(re.findall(r"https?://([\w.-]+)", text))
    assert hosts <= {"www.w3.org"}  # the name of SVG, which nobody looks up
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
    )


def test_the_page_has_no_inline_script_or_style():
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", INDEX)
    assert set(re.findall(r"(?:src|href)=\"([^\"#]+)\"", INDEX)) <= {
        "/docs",
        *(f"/page/{name(path)}" for path in FOLDER.rglob("*") if path.is_file()),
    }


def test_every_import_is_there():
    for path in OURS:
        for target in re.findall(r"(?:from |import\(|import )\"(\.[^\"]+)\"", path.read_text()):
            assert (path.parent / target).resolve().is_file(), f"{name(path)}: {target}"


def test_libraries_are_as_they_were_published_and_have_their_licence():
    listed = dict(
        re.findall(r"^\| `([^`]+)` .*`([0-9a-f]{64})` \|$", (VENDOR / "README.md").read_text(), re.MULTILINE)
    )
    held = {
        path for path in VENDOR.rglob("*") if path.is_file() and path.name not in ("README.md", "LICENSE")
    }
    assert {path.relative_to(VENDOR).as_posix() for path in held} == set(listed)
    for path in held:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[path.relative_to(VENDOR).as_posix()]
        assert (path.parent / "LICENSE").stat().st_size > 500


def test_what_installs_the_package_installs_the_page():
    import tomllib

    patterns = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    data = patterns["tool"]["setuptools"]["package-data"]["headrace"]
    packed = {path for pattern in data for path in (FOLDER.parents[1]).glob(pattern)}
    assert {path for path in FOLDER.rglob("*") if path.is_file()} <= packed
