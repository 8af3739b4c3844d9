"""Ends that leave nothing behind."""

import signal

import pytest

from headrace.cli.bench._ending import unwound


def test_sigterm_unwinds_once_and_is_as_before_afterwards():
    before, closed = signal.getsignal(signal.SIGTERM), []

    def ended() -> None:
        with unwound():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)  # while things are closed
                closed.append(True)

    with pytest.raises(SystemExit) as end:
        ended()
    assert (end.value.code, closed) == (143, [True])
    assert signal.getsignal(signal.SIGTERM) == before
