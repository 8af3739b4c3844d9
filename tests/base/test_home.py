"""Paths as people type them."""

from pathlib import Path

import pytest

from headrace.base.home import expanded


def test_a_home_is_filled_in_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/homes/me")
    assert expanded("~/model") == Path("/homes/me/model")
    assert expanded("~no-such-person/model") == Path("~no-such-person/model")
