"""The gated feed-forward block: down(act(gate(x)) * up(x)) (Shazeer 2020)."""

from torch import Tensor, nn

from headrace.base.errors import BadCheckpoint
from headrace.kernels.activation import gelu_mul, silu_mul
from headrace.nn.linear import Linear
from headrace.nn.norm import RMSNorm

ACTIVATIONS = {"silu": silu_mul, "swish": silu_mul, "gelu_pytorch_tanh": gelu_mul, "gelu_tanh": gelu_mul}


class MLP(nn.Module):
    """hidden -> 2 x intermediate, gated -> hidden. `act` is the checkpoint's hidden_act.

    Raises BadCheckpoint for an activation that is not known.
    """

    def __init__(self, hidden: int, intermediate: int, act: str, bias: bool = False):
        super().__init__()
        if act not in ACTIVATIONS:
            raise BadCheckpoint(
                f"config.json: hidden_act is {act!r}; expected one of {', '.join(ACTIVATIONS)}",
                param="hidden_act",
            )
        self.act = act
        both = (intermediate, intermediate)
        self.gate_up_proj = Linear(hidden, both, bias, fused=("gate_proj", "up_proj"), split="out")
        self.down_proj = Linear(intermediate, hidden, bias, split="in")

    def forward(self, x_TE: Tensor) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        gate_up, exact = self.gate_up_proj(x_TE), self.gate_up_proj.deterministic
        return self.down_proj(ACTIVATIONS[self.act](gate_up, exact))

    def normed(self, norm: RMSNorm, x_TE: Tensor, residual_TE: Tensor | None) -> tuple[Tensor, Tensor]:
        """(self(norm(x + residual)), x + residual)."""
        if ACTIVATIONS[self.act] is silu_mul:
            if self.down_proj.gates(x_TE):
                gate_up_TF, residual_TE = self.gate_up_proj.normed(norm, x_TE, residual_TE)
                return self.down_proj.gated(gate_up_TF), residual_TE
            inner_TF, residual_TE = self.gate_up_proj.normed(norm, x_TE, residual_TE, gated=True)
            return self.down_proj(inner_TF), residual_TE
        x_TE, residual_TE = norm.add(x_TE, residual_TE)
        return self(x_TE), residual_TE
