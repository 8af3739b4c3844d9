"""What a model must know of the step it runs in, and the plainest step: one whole sequence, no cache."""

from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor

from headrace.attention.torch import causal_bias, dense

if TYPE_CHECKING:
    from headrace.nn.attention import Attention


class Step(Protocol):
    """Tokens to run and how they see each other and what came before. T tokens of any number of sequences."""

    @property
    def ids(self) -> Tensor:
        """[T] int64."""
        ...

    @property
    def positions(self) -> Tensor:
        """[T] int64, each within its own sequence."""
        ...

    @property
    def final(self) -> "Step":
        """The step as the last layer is to see it, whose results are wanted of some tokens only, if so."""
        ...

    def attend(self, layer: "Attention", q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """QK-norm, RoPE, KV store and attention of one layer: [T, H, D]. q, k, v come from the projection.

        What comes after it is computed of so many tokens as are given here: see `keep`.
        """
        ...

    def keep(self, x_TE: Tensor) -> Tensor:
        """Of what each token has those rows whose attention `attend` gives: all, but in the last layer."""
        ...


class Entire:
    """Of a `Step` whose last layer is as the others: all tokens are wanted."""

    @property
    def final(self) -> Self:
        """See Step.final."""
        return self

    def keep(self, x_TE: Tensor) -> Tensor:
        """See Step.keep."""
        return x_TE


class Whole(Entire):
    """One sequence from its first token on, every token a query. ids [T] int64, on the model's device."""

    def __init__(self, ids_T: Tensor):
        self.ids = ids_T
        self.positions = torch.arange(len(ids_T), device=ids_T.device)
        self._biases: dict[int, Tensor] = {}

    def attend(self, layer: "Attention", q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """See Step.attend; nothing is stored."""
        q_THD, k_TKD = layer.rotate(q_THD, k_TKD, self.positions)
        bias = self._bias(layer.window, q_THD)
        return dense(q_THD, k_TKD, v_TKD, bias, layer.scale, layer.softcap)

    def _bias(self, window: int | None, like: Tensor) -> Tensor | None:
        """Which keys a window hides, made once for the layers that share it; None for plain causal."""
        tokens = len(self.ids)
        if window is None or window >= tokens:
            return None
        if window not in self._biases:
            self._biases[window] = causal_bias(tokens, tokens, window, like.dtype, like.device)
        return self._biases[window]
