"""The benchmark of the front process: that it measures whole answers, not how fast."""

import sys

import pytest

from headrace.base.errors import Broken
from headrace.bench import frontend
from headrace.bench.frontend import Work, measure

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="processes are kept on a core by Linux's means"
)


def test_every_token_of_every_stream_is_counted():
    found = {each.name: each for each in measure(Work(streams=5, tokens=20, rate=0), 1)}
    assert found["throughput"].value > 0
    assert found["processor time per token"].value > 0
    assert 0 < found["chunks per token"].value <= 1.1
    assert found["bytes per token"].value > 50


def test_streams_that_break_off_are_an_error(monkeypatch: pytest.MonkeyPatch):
    whole = frontend._request
    monkeypatch.setattr(frontend, "_request", lambda n, work: whole(n, Work(work.streams, -1, 0)))
    with pytest.raises(Broken, match="5 of 5 streams did not end"):
        measure(Work(streams=5, tokens=20, rate=0), 1)
