"""Params are made by the names of their fields, and a name that there is not is answered with the nearest."""

import copy
import pickle

import msgspec
import pytest

from headrace.base.errors import UnknownName
from headrace.base.params import Named


class Kettle(msgspec.Struct, metaclass=Named, frozen=True, kw_only=True):
    litres: float = 1.0
    whistle: bool = False

    def __post_init__(self) -> None:
        if self.litres == 0:
            raise TypeError("an empty kettle")


def test_the_nearest_field_is_named():
    with pytest.raises(UnknownName, match="unknown Kettle field 'litre'") as refused:
        Kettle(whistle=True, litre=2)  # pyright: ignore[reportCallIssue]
    assert refused.value.param == "litre"
    assert refused.value.hint == "did you mean 'litres'? known: litres, whistle"


def test_other_mistakes_are_python_s_own():
    with pytest.raises(TypeError, match="positional"):
        Kettle(2)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="an empty kettle"):
        Kettle(litres=0)


def test_they_are_structs_all_the_same():
    made = Kettle(litres=2)
    assert copy.copy(made) == pickle.loads(pickle.dumps(made)) == made
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Kettle) == made
    assert msgspec.structs.replace(made, whistle=True) == Kettle(litres=2, whistle=True)
