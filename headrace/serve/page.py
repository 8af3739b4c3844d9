"""The page at `/`: static files, held in memory and sent with headers that let nothing of elsewhere run or load.

No file is looked up by a requested name: all are read once, and a request finds one of them or nothing. They hold
no secret, so `/` and `/page/...` need no key (`OPEN` says so to serve/auth.py): the page itself asks for the key when
the API answers 401, and keeps it in the tab.
"""

import gzip
import hashlib
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from fastapi import APIRouter, Request, Response

from headrace.base.errors import UnknownName
from headrace.serve import errors

OPEN: Final = ("/", "/page/")
"""`/` itself and what begins with `/page/` are for everyone."""

FOLDER = Path(__file__).with_name("page")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    "": "text/plain; charset=utf-8",  # LICENSE
}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    # text becomes markup in one place only, the sanitizer
    "require-trusted-types-for": "'script'",
    "trusted-types": "dompurify",
}
SECURITY = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    "X-Frame-Options": "DENY",
}
# A library's folder has its version in its name, so its files never change; our own may, with every release.
FOR_EVER = "public, max-age=31536000, immutable"
ASK_FIRST = "no-cache"

router = APIRouter(include_in_schema=False)


class File(NamedTuple):
    """A file as it is sent: as it is, and packed."""

    plain: bytes
    packed: bytes
    kind: str
    tag: str
    keep: str


@cache
def files() -> dict[str, File]:
    """Every file of the page by its path below `/page/`."""
    found: dict[str, File] = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file() and path.suffix in KINDS:
            name, plain = path.relative_to(FOLDER).as_posix(), path.read_bytes()
            keep = FOR_EVER if name.startswith("vendor/") else ASK_FIRST
            tag = f'"{hashlib.sha256(plain).hexdigest()[:20]}"'
            found[name] = File(plain, gzip.compress(plain, mtime=0), KINDS[path.suffix], tag, keep)
    return found


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    """The page."""
    return _send(request, files()["index.html"])


@router.api_route("/page/{name:path}", methods=["GET", "HEAD"])
async def part(request: Request, name: str) -> Response:
    """What the page is made of: style, script, icon."""
    file = files().get(name)
    if file is None:
        response = errors.answer(UnknownName("the page has no such file"))
        response.headers.update(SECURITY)
        return response
    return _send(request, file)


def _send(request: Request, file: File) -> Response:
    headers = {**SECURITY, "Cache-Control": file.keep, "ETag": file.tag, "Vary": "Accept-Encoding"}
    known = request.headers.get("if-none-match", "")
    if file.tag in {tag.strip().removeprefix("W/") for tag in known.split(",")}:
        return Response(status_code=304, headers=headers)
    body = file.plain
    if _accepts_gzip(request.headers.get("accept-encoding", "")):
        body, headers["Content-Encoding"] = file.packed, "gzip"
    if request.method == "HEAD":
        return Response(headers=headers | {"Content-Length": str(len(body))}, media_type=file.kind)
    return Response(body, headers=headers, media_type=file.kind)


def _accepts_gzip(header: str) -> bool:
    """Whether `gzip` is named in an Accept-Encoding header, and not with weight nought."""
    for item in header.lower().split(","):
        name, _, weight = item.partition(";")
        if name.strip() == "gzip":
            return weight.strip().removeprefix("q=").strip("0.") != "" or not weight
    return False
