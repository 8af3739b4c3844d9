"""What a kernel is measured on: a model's sizes, a way to run, and a case of one kernel on one shape."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.base.errors import UnknownName
from headrace.bench.replay import Call
from headrace.bench.shapes import SHAPES


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer: N outputs (per half if gated), K inputs, and what the engine computes with it in one call."""

    name: str
    n: int
    k: int
    gated: bool = False
    normed: bool = False

    @property
    def rows(self) -> int:
        """Rows of the weight."""
        return self.n * (2 if self.gated else 1)

    @property
    def bytes(self) -> int:
        """Of the weight, in 16 bits."""
        return 2 * self.rows * self.k


@dataclass(frozen=True, slots=True)
class Sizes:
    """What kernels need to know of a model."""

    name: str
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    qk_norm: bool = False

    @classmethod
    def of(cls, name: str) -> "Sizes":
        """Of a shape by its name. Raises UnknownName."""
        if name not in SHAPES:
            raise UnknownName.among("shape", name, list(SHAPES), param="shape")
        said = SHAPES[name]
        heads = said["num_attention_heads"], said["num_key_value_heads"], said["head_dim"]
        sizes = said["hidden_size"], said["intermediate_size"], *heads, said["vocab_size"]
        return cls(name, *sizes, qk_norm=said["model_type"] == "qwen3")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The linear layers of a block, and the head."""
        attended = self.heads * self.head_dim
        return (
            Layer("qkv", attended + 2 * self.kv_heads * self.head_dim, self.hidden, normed=True),
            Layer("o", self.hidden, attended),
            Layer("gate_up", self.inner, self.hidden, gated=True, normed=True),
            Layer("down", self.hidden, self.inner),
            Layer("head", self.vocab, self.hidden),
        )


class Way(NamedTuple):
    """How kernels are run: as deterministic engines do (`fixed`), and the type of the KV cache."""

    fixed: bool = False
    kv: torch.dtype = torch.bfloat16


class Launch(NamedTuple):
    """A case with its inputs in memory.

    calls     the same work over different memory
    check     error of the kernel on the first of them, against the definition in float32
    library   the same by torch, where it has it: cuBLAS, SDPA or its own kernels
    """

    calls: Sequence[Call]
    check: Callable[[], float]
    library: Sequence[Call] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel on one shape. `bytes` must be moved and `operations` computed by whatever computes it.

    `make(copies, device)` draws the inputs; `bound` is on the relative error.
    """

    kernel: str
    name: str
    bytes: float
    make: Callable[[int, torch.device], Launch]
    operations: float = 0.0
    bound: float = 6e-3


def error(out: Tensor, wanted: Tensor) -> float:
    """Norm of the difference against the norm of what is wanted; infinite where anything is not finite."""
    if out.shape != wanted.shape or not out.isfinite().all():
        return float("inf")
    return float((out.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))


def draw(*shape: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normal random numbers."""
    return torch.randn(shape, device=device).to(dtype)
