"""Faults carry what a person and a program need."""

import pytest

from headrace.base.errors import (
    BadCheckpoint,
    Broken,
    Busy,
    Denied,
    Fault,
    Forbidden,
    Late,
    Refused,
    TooLarge,
    TooLong,
    UnknownName,
    Unreachable,
)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Refused("no"), 400, 2),
        (TooLong("no"), 400, 2),
        (UnknownName("no"), 404, 2),
        (BadCheckpoint("no"), 400, 2),
        (Denied("no"), 401, 2),
        (Forbidden("no"), 403, 2),
        (TooLarge("no"), 413, 2),
        (Busy("no"), 429, 1),
        (Late("no"), 408, 1),
        (Unreachable("no"), 503, 2),
        (Broken("no"), 500, 1),
    ],
)
def test_status_and_exit_code(fault: Fault, status: int, code: int):
    assert (fault.status, fault.exit_code) == (status, code)


def test_the_hint_is_the_class_own_unless_one_is_given():
    assert TooLong("9 tokens").hint == TooLong.hint
    assert str(TooLong("9 tokens", hint="less")) == "9 tokens\n  hint: less"
    assert str(Refused("no")) == "no"


def test_the_field_at_fault_and_the_time_to_wait():
    assert Refused("no", param="top_p").param == "top_p"
    assert Busy("full", retry_after=2.5, hint="later").retry_after == 2.5


def test_an_unknown_name_lists_the_known_ones():
    fault = UnknownName.among("model", "lama", ["qwen", "llama"], param="model")
    assert fault.message == "unknown model 'lama'"
    assert fault.hint == "did you mean 'llama'? known: llama, qwen"
    assert UnknownName.among("model", "zzz", ["llama"]).hint == "known: llama"
