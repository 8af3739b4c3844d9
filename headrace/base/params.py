"""What people construct by the names of its fields: a name that there is not is answered with the nearest one."""

from typing import TYPE_CHECKING, Any

import msgspec

from headrace.base.errors import UnknownName

_make: Any = msgspec.StructMeta.__call__


class Named(msgspec.StructMeta):
    """The metaclass of such structs. Construction raises UnknownName, its `param` naming what was given."""

    if not TYPE_CHECKING:  # to a type checker the fields are the signature

        def __call__(self, *values: object, **fields: object) -> object:
            try:
                return _make(self, *values, **fields)
            except TypeError:
                known = self.__struct_fields__
                for name in fields:
                    if name not in known:
                        raise UnknownName.among(
                            f"{self.__name__} field", name, list(known), param=name
                        ) from None
                raise
