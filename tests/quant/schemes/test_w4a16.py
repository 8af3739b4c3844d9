"""4-bit schemes as laid out for a GPU: the same weights, and the same products."""

import pytest
import torch

from headrace.kernels.norm import Norm
from headrace.quant.schemes.w4a16 import SCHEMES
from tests.kernels.closeness import assert_close


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("ordered", [False, True])
def test_prepared_weights_are_the_same(name: str, ordered: bool):
    torch.manual_seed(0)
    scheme, x, gain = SCHEMES[name], torch.randn(3, 256), torch.randn(256)
    packed = scheme.pack(torch.randn(64, 256))
    if ordered:
        packed["order"] = torch.randperm(256).int()
    laid = scheme.prepare(packed)
    assert laid["weight"].dtype == torch.int16
    assert torch.equal(scheme.unpack(laid), scheme.unpack(packed))
    assert_close(scheme.apply(laid, x, gain[:64]), scheme.apply(packed, x, gain[:64]))
    for gated in (False, True):
        ours = scheme.normed(laid, x, x, Norm(gain, 1e-5), gated=gated)
        for out, wanted in zip(ours, scheme.normed(packed, x, x, Norm(gain, 1e-5), gated=gated), strict=True):
            assert_close(out, wanted, 1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(24, 128), (32, 96)])
def test_what_fills_no_whole_tiles_stays_as_it_is(rows: int, columns: int):
    packed = SCHEMES["w4a16_g32"].pack(torch.randn(rows, columns))
    assert SCHEMES["w4a16_g32"].prepare(packed) is packed
