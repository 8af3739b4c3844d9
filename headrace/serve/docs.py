"""/docs: the paths and fields of /openapi.json as a page that loads nothing from anywhere."""

from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

Json = dict[str, Any]

STYLE = (
    ":root{color-scheme:light dark;--line:#8884}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}"
    "code{font-family:ui-monospace,monospace;font-size:.9em}"
    "details{border:1px solid var(--line);border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}"
    "summary{cursor:pointer}.m{display:inline-block;min-width:4.5rem;font-weight:700}"
    "table{border-collapse:collapse;width:100%;display:block;overflow-x:auto}"
    "td,th{border-top:1px solid var(--line);padding:.25rem .6rem .25rem 0;text-align:left;vertical-align:top}"
)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """The page."""
    return HTMLResponse(page(request.app.openapi()), headers=HEADERS)


def page(document: Json) -> str:
    """The document as HTML."""
    said = document["info"]
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            groups.setdefault((route.get("tags") or ["more"])[0], []).append(
                _route(document, method.upper(), path, route)
            )
    body = "".join(f"<h2>{escape(name)}</h2>{''.join(routes)}" for name, routes in groups.items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(said['title'])} API</title><style>{STYLE}</style>"
        f"<h1>{escape(said['title'])} <small>{escape(said['version'])}</small></h1>"
        f'<p>{escape(said["description"])} As JSON: <a href="/openapi.json">/openapi.json</a>.</p>{body}</html>'
    )


def _route(document: Json, method: str, path: str, route: Json) -> str:
    about = escape(route.get("description", ""))
    parts = [f"<summary><span class=m>{method}</span><code>{escape(path)}</code> {about}</summary>"]
    content = route.get("requestBody", {}).get("content", {})
    for found in content.values():
        parts.append(f"<h3>body</h3>{_fields(document, found['schema'])}")
    for status, reply in route.get("responses", {}).items():
        found = reply.get("content", {}).get("application/json", {}).get("schema")
        if status == "200" and found:
            parts.append(f"<h3>reply</h3>{_fields(document, found)}")
    refusals = ", ".join(status for status in route.get("responses", {}) if status != "200")
    parts.append(f"<p>Refusals: {escape(refusals)}, with an error object.</p>" if refusals else "")
    return f"<details>{''.join(parts)}</details>"


def _fields(document: Json, schema: Json) -> str:
    found = _resolved(document, schema)
    needed = found.get("required", ())
    fields = sorted(found.get("properties", {}).items(), key=lambda item: item[0] not in needed)
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{'*' if name in needed else ''}"
        f"<td><code>{escape(_type(field))}</code><td>{escape(field.get('description', ''))}"
        for name, field in fields
        if field.get("description") != "ignored"
    )
    return f"<table><tr><th>field<th>type<th>what it is (* needed){rows}</table>" if rows else ""


def _resolved(document: Json, schema: Json) -> Json:
    if "$ref" in schema:
        return document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return _resolved(document, schema["items"]) if "items" in schema else schema


def _type(field: Json) -> str:
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    if "anyOf" in field:
        return " | ".join(_type(one) for one in field["anyOf"] if one.get("type") != "null")
    if field.get("type") == "array":
        return f"[{_type(field.get('items', {}))}]"
    return field.get("const") or field.get("type", "any")
