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
    """The scheme called `name`; its usual group may be said, too. Raises UnknownName listing those there are."""
    schemes = known()
    name = name.replace("w4a16_g128", "w4a16").replace("w8a16_row", "w8a16")
    if name not in schemes:
        raise UnknownName.among("quantization scheme", name, sorted(schemes), param="model.quantization")
    return schemes[name]
