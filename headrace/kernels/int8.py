"""Products with 8-bit weights on a CPU: every token rounded to 8 bits by a scale and a zero point of its own.

T tokens, K inputs, N outputs. Sums are integers and exact, whatever their order; what is left of float arithmetic is
done number by number. So a token's result depends on that token alone. The library's product (fbgemm) wants one scale
for all tokens: it is given tokens that are whole numbers already. One token by itself needs no such preparation.
"""

import warnings
from contextlib import ExitStack
from threading import Lock

import torch
from torch import Tensor

ENGINE = "fbgemm"
LIFT = 2.0**20
"""Inputs are multiplied, weights divided by this: the library rounds no finer than in steps of 6.1e-5."""

BYTES_PER_ROW = 16
"""Beside a weight's values: scale, zero point and sum."""


def missing() -> str | None:
    """Why this machine has no such product; None where it has."""
    if ENGINE in torch.backends.quantized.supported_engines:
        return None
    return f"torch was built without {ENGINE} for this processor"


def _levels() -> int:
    """Steps that numbers are rounded to: without VNNI pairs of products are added up in 16 bits, which saturate."""
    return 255 if torch.cpu._is_vnni_supported() else 127


class _Packing:
    """Entered by whoever packs, several threads at once: what must be set for that is set for the whole process.

    The first one sets it, the last one puts back what was there.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before.enter_context(warnings.catch_warnings())
                warnings.simplefilter(
                    "ignore", UserWarning
                )  # that quantized tensors are to go; see decision 015
                self._before.callback(_choose, torch.backends.quantized.engine)
                _choose(ENGINE)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.close()


def _choose(engine: str) -> None:
    torch.backends.quantized.engine = engine


_PACKING = _Packing()


class Int8Weight:
    """A weight in the library's own order, which it multiplies fastest by.

    values int8 [N, K], scale float32 [N]: the weight is their product. `packed` is the library's object.
    """

    def __init__(self, values_NK: Tensor, scale_N: Tensor):
        self.shape = tuple(values_NK.shape)
        self.nbytes = values_NK.nbytes + BYTES_PER_ROW * len(values_NK)
        lifted_N = scale_N.double() / LIFT
        # Widened before they are added up, all that are given at once; 16 million columns fit into 32 bits.
        sums = [piece.sum(1, dtype=torch.int32) for piece in values_NK.split(1024)]
        self.sums_N = (torch.cat(sums) * lifted_N).float()
        self.levels = _levels()
        self.middle = self.levels // 2 + 1
        zeros = torch.zeros(len(scale_N), dtype=torch.int64, device="cpu")
        with _PACKING:
            tensor = torch._make_per_channel_quantized_tensor(values_NK, lifted_N, zeros, 0)  # pyright: ignore[reportPrivateImportUsage]
            self.packed = torch.ops.quantized.linear_prepack(tensor, None)
        # The bare functions: what torch puts around them for tracing takes longer than a small product.
        self._dynamic = torch.ops.quantized.linear_dynamic.default._op
        self._static = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default._op

    def unpack(self) -> Tensor:
        """The weight in float32 [N, K]."""
        weight, _ = torch.ops.quantized.linear_unpack(self.packed)
        return weight.dequantize().mul_(LIFT)

    def product(self, x_TK: Tensor, fixed: bool = False) -> Tensor:
        """x @ weight.T as float32 [T, N]. x float32; with `fixed` one token has the bits it has among others."""
        tokens = x_TK.shape[0]
        if tokens == 1 and not fixed:
            return self._dynamic(x_TK * LIFT, self.packed, self.levels == 127)
        if not x_TK.numel():
            return x_TK.new_zeros(tokens, self.shape[0])
        low, high = x_TK.amin(-1, keepdim=True).clamp_(max=0), x_TK.amax(-1, keepdim=True).clamp_(min=0)
        scale_T1 = high.sub_(low).mul_(1 / self.levels).clamp_(min=1e-30)
        shift_T1 = low.div_(scale_T1).round_().add_(self.middle)
        whole = (x_TK / scale_T1).sub_(shift_T1)
        out_TN = self._static(whole, 1.0, self.middle, self.packed)
        scale_T1.mul_(LIFT)
        if fixed:  # product and sum each rounded: fused or not would depend on the place in memory
            return out_TN.add_(shift_T1 * self.sums_N).mul_(scale_T1)
        return out_TN.addcmul_(shift_T1, self.sums_N).mul_(scale_T1)
