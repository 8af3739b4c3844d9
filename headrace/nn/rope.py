"""Rotary position tables: the scalings of Hugging Face checkpoints, the frequency factors of GGUF files."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headrace.base.errors import BadCheckpoint, UnknownName
from headrace.nn.shape import count, flag, number, optional

Scaling = dict[str, Any]


def _plain(dim: int, base: float) -> Tensor:
    """Turns per position, in radians, of each pair: base^(-2i / dim) (Su et al. 2021, section 3.2.2)."""
    # float32 and in this order, as the checkpoints' own code: far positions multiply the rounding error.
    return 1.0 / (base ** (torch.arange(0, dim, 2, device="cpu").float() / dim))


def _linear(frequencies: Tensor, base: float, scaling: Scaling, original: int) -> tuple[Tensor, float]:
    """Positions squeezed by `factor` (Chen et al. 2023, eq. 4)."""
    return frequencies / number(scaling, "factor"), 1.0


def _llama3(frequencies: Tensor, base: float, scaling: Scaling, original: int) -> tuple[Tensor, float]:
    """Long waves slowed by `factor`, short ones kept, a straight blend between, as Llama 3.1 has it."""
    low, high = number(scaling, "low_freq_factor"), number(scaling, "high_freq_factor")
    turns = original * frequencies / (2 * math.pi)  # of each pair within the original length
    kept = ((turns - low) / (high - low)).clamp(0, 1) if high != low else (turns > low).float()
    return frequencies * (kept + (1 - kept) / number(scaling, "factor")), 1.0


def _yarn(frequencies: Tensor, base: float, scaling: Scaling, original: int) -> tuple[Tensor, float]:
    """Blend by dimension, and a factor on cos and sin (Peng et al. 2023, sections 3.2 to 3.4)."""
    factor, dim = number(scaling, "factor"), 2 * len(frequencies)

    def pair(turns: float) -> float:
        """The (fractional) pair that turns so often within the original length."""
        found = dim * (math.log(original / (2 * math.pi)) - math.log(turns)) / (2 * math.log(base))
        return min(max(found, -1.0), float(dim))

    low, high = pair(number(scaling, "beta_fast", 32.0)), pair(number(scaling, "beta_slow", 1.0))
    if flag(scaling, "truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    slowed = ((torch.arange(dim // 2, device="cpu") - low) / ((high - low) or 0.001)).clamp(0, 1)
    return frequencies * ((1 - slowed) + slowed / factor), _yarn_attention(scaling, factor)


def _yarn_attention(scaling: Scaling, factor: float) -> float:
    if (given := optional(scaling, "attention_factor")) is not None:
        return given

    def growth(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    one, every = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if one and every:
        return growth(number(scaling, "mscale")) / growth(number(scaling, "mscale_all_dim"))
    return growth(1.0)


SCALINGS: dict[str, Callable[[Tensor, float, Scaling, int], tuple[Tensor, float]]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
KNOWN = ["default", "dynamic", *SCALINGS]


class Rope(nn.Module):
    """`table` [max_len, dim] float32: for each position the cosines of dim / 2 angles, then their sines.

    dim            size that is rotated
    base           rope_theta
    scaling        rope_scaling of config.json; None or {"rope_type": "default"} for none
    max_len        positions in the table
    original_max   max_position_embeddings: the length at which "dynamic" begins to scale, and the one that
                   "llama3" and "yarn" refer to where the scaling does not name its own
    factors        divisors of the frequencies, one per pair (rope_freqs.weight of GGUF files)

    "dynamic" uses the plain base for positions below original_max, and for a position p beyond it the base
    scaled for length p + 1: what generation token by token gives, whatever the chunks.

    The table is no parameter and never cast: whenever the module moves, off the meta device too, the table is
    computed again on the new device, so it cannot hold uninitialized memory.

    Raises UnknownName for an unknown scaling, BadCheckpoint naming the key for one that makes no sense.
    """

    table: Tensor

    def __init__(
        self,
        dim: int,
        base: float,
        scaling: Scaling | None,
        max_len: int,
        original_max: int,
        factors: Sequence[float] | None = None,
    ):
        super().__init__()
        self.dim, self.base, self.max_len, self.original_max = dim, base, max_len, original_max
        if not base > 1:
            raise BadCheckpoint(
                f"config.json: rope_theta is {base}; expected more than 1", param="rope_theta"
            )
        scaling = scaling or {}
        self.kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if self.kind not in KNOWN:
            raise UnknownName.among("rope scaling", str(self.kind), KNOWN, param="rope_scaling")
        self.factor, self.attention_factor = 1.0, 1.0
        frequencies = _plain(dim, base)
        if self.kind == "dynamic":
            self.factor = number(scaling, "factor")
        elif self.kind in SCALINGS:
            original = count(scaling, "original_max_position_embeddings", original_max)
            if scaling.get("factor") is None:
                scaling = scaling | {"factor": original_max / original} if self.kind == "yarn" else scaling
            frequencies, self.attention_factor = SCALINGS[self.kind](frequencies, base, scaling, original)
        self.divisors = _divisors(factors, dim // 2)
        self.frequencies = frequencies / self.divisors  # on the CPU always, whatever the default device
        if not bool(self.frequencies.isfinite().all()):
            raise BadCheckpoint("config.json: rope_scaling gives no finite frequencies", param="rope_scaling")
        self.register_buffer("table", self._compute(torch.empty(0).device), persistent=False)

    @classmethod
    def of(cls, config: dict[str, Any], dim: int, max_len: int, default_base: float = 10000.0) -> "Rope":
        """The rope of `config`: rope_theta, rope_scaling, rope_freq_factors, max_position_embeddings."""
        scaling = config.get("rope_scaling")
        if scaling is not None and not isinstance(scaling, dict):
            raise BadCheckpoint(
                f"config.json: rope_scaling is {scaling!r}; expected an object", param="rope_scaling"
            )
        if (config.get("partial_rotary_factor") or 1.0) != 1.0:
            raise BadCheckpoint(
                "config.json: partial_rotary_factor is not 1; expected a rotation of whole heads"
            )
        base = number(config, "rope_theta", default_base)
        original_max = count(config, "max_position_embeddings")
        return cls(dim, base, scaling, max_len, original_max, config.get("rope_freq_factors"))

    def place(self, device: torch.device | str) -> None:
        """Compute the table on `device` if it is not there yet."""
        if self.table.device != torch.empty(0, device=device).device:
            self.table = self._compute(torch.device(device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rope":
        """Where nn.Module would move, cast or empty the table: compute it where the others go."""
        self.place(fn(torch.empty(0, device=self.table.device)).device)
        return self

    def _compute(self, device: torch.device) -> Tensor:
        if device.type == "meta":  # arithmetic there would import half of torch
            return torch.empty(self.max_len, self.dim, device=device)
        positions = torch.arange(self.max_len, device=device).float()
        angles = positions[:, None] * self.frequencies.to(device)
        if self.kind == "dynamic" and self.max_len > self.original_max:
            late = positions[self.original_max :]
            # NTK-aware growth of the base with the length so far (YaRN, Peng et al. 2023, section 3.1).
            growth = self.factor * (late + 1) / self.original_max - (self.factor - 1)
            bases = self.base * growth ** (self.dim / (self.dim - 2))
            exponents = torch.arange(0, self.dim, 2, device=device).float() / self.dim
            scaled = 1.0 / (bases[:, None] ** exponents) / self.divisors.to(device)
            angles[self.original_max :] = late[:, None] * scaled
        return torch.cat([angles.cos(), angles.sin()], dim=1) * self.attention_factor


def _divisors(factors: Sequence[float] | None, pairs: int) -> Tensor:
    if factors is None:
        return torch.ones(pairs, device="cpu")
    try:
        divisors = torch.as_tensor(factors, dtype=torch.float32, device="cpu").flatten()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        divisors = torch.empty(0, device="cpu")
    if len(divisors) != pairs or not bool((divisors.isfinite() & (divisors > 0)).all()):
        raise BadCheckpoint(
            f"rope frequency factors: {len(divisors)} numbers; expected {pairs} positive ones",
            param="rope_freq_factors",
        )
    return divisors
