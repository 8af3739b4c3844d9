"""`headrace serve`: what does not need a server; the rest is in tests/whole."""

import time

import pytest

from headrace.cli import serve


def test_the_beginning_is_before_now_and_known_where_the_system_says_it(monkeypatch: pytest.MonkeyPatch):
    assert serve._began() <= time.monotonic()
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)  # as on a Mac
    before = time.monotonic()
    assert serve._began() >= before
