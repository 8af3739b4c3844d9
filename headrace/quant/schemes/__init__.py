"""One file per scheme; SCHEMES in each maps the names that users write to what the file knows how to do."""

import sys

from headrace.base.discover import modules
from headrace.base.errors import UnknownName
from headrace.quant.scheme import Scheme

USUAL = {
    "w4a16_g128": "w4a16",
    "w4a16_g128_asym": "w4a16_asym",
    "w8a16_row": "w8a16",
    "w8a16_row_asym": "w8a16_asym",
}
"""Names that say the usual group, and what they are known by."""


def known() -> dict[str, Scheme]:
    """Every scheme by its name."""
    return {
        name: scheme for module in modules(sys.modules[__name__]) for name, scheme in module.SCHEMES.items()
    }


def scheme_named(name: str) -> Scheme:
    """The scheme called `name`; its usual group may be said, too. Raises UnknownName listing those there are."""
    schemes = known()
    name = USUAL.get(name, name)
    if name not in schemes:
        raise UnknownName.among("quantization scheme", name, sorted(schemes), param="model.quantization")
    return schemes[name]
