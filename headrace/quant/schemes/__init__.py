"""One file per scheme; SCHEMES in each maps the names that users write to what the file knows how to do."""

import sys

from headrace.base.discover import modules
from headrace.base.errors import UnknownName
from headrace.quant.scheme import Scheme


def known() -> dict[str, Scheme]:
    """Every scheme by its name."""
    return {
        name: scheme for module in modules(sys.modules[__name__]) for name, scheme in module.SCHEMES.items()
    }


def scheme_named(name: str) -> Scheme:
    """The scheme called `name`. Raises UnknownName listing those there are."""
    schemes = known()
    if name not in schemes:
        raise UnknownName.among("quantization scheme", name, sorted(schemes), param="model.quantization")
    return schemes[name]
