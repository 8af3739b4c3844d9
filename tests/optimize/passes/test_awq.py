"""AWQ: the same function, of which rounding takes less than plainly."""

import pytest
import torch

from headrace.models.llama import TINY
from headrace.optimize.passes._seams import seams
from headrace.optimize.passes.awq import PASS, Trial
from headrace.quant.schemes import scheme_named
from tests.optimize.passes import made

WIDE = {
    **TINY,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}
SCHEMES = ["w4a16_g32", "w4a16_g32_asym", "w4a16_row", "w8a8", "w8a8_static", "fp8_static", "mxfp4", "q4_0"]


@pytest.mark.parametrize("name", SCHEMES)
def test_rounding_never_loses_more(name: str):
    """Of every layer, on the sample; plain rounding is one of the ways tried."""
    scheme = scheme_named(name)
    block, x = made.block(WIDE), made.hidden(96)
    inputs = made.seen(block, x)
    for seam in seams(block):
        trial = Trial(seam, scheme, inputs[seam.layer])
        scale = PASS().best(trial)
        assert trial.loss(scale) <= trial.loss(torch.ones_like(scale))


@pytest.mark.parametrize("name", ["w4a16_g32", "w4a16_row", "w4a16_g32_asym", "mxfp4", "q4_0"])
def test_with_channels_that_stand_out_rounding_loses_less(name: str):
    scheme = scheme_named(name)
    block = made.block(WIDE)
    seam = next(seams(block))
    x = made.correlated(200, 96)
    trial = Trial(seam, scheme, made.inputs(x))
    scale = PASS().best(trial)
    share = 0.85 if name == "mxfp4" else 0.7  # floats mind less what stands out
    assert trial.loss(scale) < share * trial.loss(torch.ones_like(scale))
    weight, columns = seam.layer.weight.data, seam.columns(scale)
    plain = scheme.unpack(scheme.pack(weight))
    better = scheme.unpack(scheme.pack(weight * columns)) / columns
    fresh = made.correlated(200, 96)[torch.randperm(200, generator=torch.Generator().manual_seed(5))]
    assert made.loss(weight, better, fresh) < made.loss(weight, plain, fresh)


@pytest.mark.parametrize("name", ["w4a16_g32", "w4a16_row", "w8a8"])
def test_a_whole_block_loses_less(name: str):
    """Also where what rounds looks for the best range itself."""
    scheme = scheme_named(name)
    x = made.hidden(96)
    lost = []
    for change in (None, PASS()):
        block = made.block(WIDE)
        wanted = made.run(block, x)
        if change is not None:
            change.change(block, made.seen(block, x), lambda layer: scheme)
        made.rounded(block, scheme, x)
        lost.append(float((made.run(block, x) - wanted).norm()))
    assert lost[1] < 0.985 * lost[0]


@pytest.mark.parametrize(
    ("inner", "name", "there"),
    [
        ("rounded", "w8a8", True),
        ("rounded", "w4a16_row", False),
        ("always", "w4a16_row", True),
        ("never", "w8a8", False),
    ],
)
def test_where_no_norm_lies_between(inner: str, name: str, there: bool):
    block, x = made.block(WIDE), made.hidden(96)
    down = block.mlp.down_proj.weight.data.clone()
    PASS(inner=inner).change(block, made.seen(block, x), lambda layer: scheme_named(name))
    assert torch.equal(block.mlp.down_proj.weight.data, down) is not there
