"""How weights may be kept: bits of each, scales included, and in which numbers they are multiplied."""

from typing import NamedTuple

from headrace.base.errors import UnknownName


class Scheme(NamedTuple):
    """One way to keep a model's matrices. Embedding, head, norms and routers stay in 16 bits unless `head`."""

    name: str
    bits: float
    """Per weight, with its share of the scales."""
    arithmetic: str
    """Whose speed counts: bf16, fp8, int8, fp4 or fp32."""
    about: str
    experts_only: bool = False
    """Only the experts are kept so; attention stays in 16 bits."""
    head: bool = False
    """Embedding and head are kept so too."""
    rest: float = 16
    """Bits of everything else, and of activations and KV cache."""

    @property
    def plain(self) -> bool:
        return self.bits == self.rest


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp32", 32, "fp32", "as on a CPU", head=True, rest=32),
        Scheme("bf16", 16, "bf16", "as trained", head=True),
        Scheme("fp16", 16, "bf16", "as trained", head=True),
        Scheme("fp8", 8, "fp8", "weights and activations in 8-bit floats"),
        Scheme("int8", 8, "int8", "weights and activations in 8-bit integers"),
        Scheme("w8a16", 8, "bf16", "weights in 8 bits, activations as they are"),
        Scheme("w4a16", 4 + 16 / 128, "bf16", "weights in 4 bits with a scale for 128"),
        Scheme("nvfp4", 4 + 8 / 16, "fp4", "weights and activations in 4-bit floats, a scale for 16"),
        Scheme("mxfp4", 4 + 8 / 32, "bf16", "experts in 4-bit floats, a scale for 32", experts_only=True),
        Scheme("q8_0", 8.5, "int8", "GGUF, 8 bits with a scale for 32", head=True),
        Scheme("q4_1", 5.0, "int8", "GGUF, 4 bits with scale and offset for 32", head=True),
        Scheme("q4_0", 4.5, "int8", "GGUF, 4 bits with a scale for 32", head=True),
    )
}
KV_BITS = {"fp32": 32.0, "bf16": 16.0, "fp16": 16.0, "fp8": 8.0, "int8": 8.0}


def scheme(name: str) -> Scheme:
    """The scheme of that name. Raises UnknownName with the nearest one."""
    if name.lower() not in SCHEMES:
        raise UnknownName.among("scheme", name, list(SCHEMES), param="scheme")
    return SCHEMES[name.lower()]


def kv_bits(name: str) -> float:
    """Bits of an element of the KV cache. Raises UnknownName with the nearest one."""
    if name.lower() not in KV_BITS:
        raise UnknownName.among("KV cache type", name, ["auto", *KV_BITS], param="kv")
    return KV_BITS[name.lower()]
