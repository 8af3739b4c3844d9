"""Faults carry what a person and a program need."""

import re

import pytest

from headrace.base import errors
from headrace.base.errors import Busy, Fault, Refused, TooLong, UnknownName

TABLE = re.findall(r"(\w+) +(\d{3}) +exit (\d)", errors.__doc__ or "")


@pytest.mark.parametrize(("name", "status", "code"), TABLE)
def test_status_and_exit_code_are_as_the_table_says(name: str, status: str, code: str):
    fault = getattr(errors, name)("no")
    assert (fault.status, fault.exit_code) == (int(status), int(code))


def test_every_fault_is_in_the_table():
    made = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Fault)}
    assert {name for name, *_ in TABLE} == made - {"Fault"}


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
