"""What every scheme must do; a new file in quant/schemes is found by itself."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headrace.base.errors import Refused
from headrace.kernels.activation import silu_mul_ref
from headrace.kernels.norm import Norm, rms_norm_ref
from headrace.quant.scheme import Scheme, join, part
from headrace.quant.schemes import known, scheme_named

SCHEMES = known()
ROWS, COLUMNS, TOKENS = 256, 512, 5


@pytest.fixture(params=list(SCHEMES.values()), ids=list(SCHEMES))
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return request.param


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed_weight(scheme: Scheme, rows: int = ROWS, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    weight = random(rows, COLUMNS, dtype=torch.bfloat16, seed=seed)
    packed = scheme.pack(weight)
    if scheme.spec.static:
        packed["input_scale"] = torch.tensor([0.04 if scheme.spec.activation == "int8" else 0.01])
    return weight, packed


def largest(scheme: Scheme, weight: Tensor) -> Tensor:
    """The largest of the numbers that share a scale, one per element."""
    size, group = weight.abs().float(), scheme.spec.group
    match scheme.spec.granularity:
        case "tensor":
            peak = size.amax().expand_as(size)
        case "channel":
            peak = size.amax(1, keepdim=True).expand_as(size)
        case "group":
            peak = size.unflatten(1, (-1, group)).amax(2).repeat_interleave(group, 1)
        case "block":
            blocks = size.unflatten(0, (-1, group)).unflatten(2, (-1, group)).amax((1, 3))
            peak = blocks.repeat_interleave(group, 0).repeat_interleave(group, 1)
    return peak


def test_apply_is_the_product_with_unpack(scheme: Scheme):
    _, packed = packed_weight(scheme)
    x, bias = random(2, TOKENS, COLUMNS, seed=1), random(ROWS, seed=2)
    expected = scheme.seen(packed, x) @ scheme.unpack(packed).T + bias
    assert scheme.size(packed) == (ROWS, COLUMNS)
    torch.testing.assert_close(scheme.apply(packed, x, bias), expected, rtol=1e-4, atol=1e-3)
    assert scheme.apply(packed, x.bfloat16()).dtype == torch.bfloat16


def test_no_tokens_have_no_products(scheme: Scheme):
    _, packed = packed_weight(scheme)
    for shape in ((0,), (2, 0)):
        assert scheme.apply(packed, torch.empty(*shape, COLUMNS)).shape == (*shape, ROWS)
    assert scheme.apply_gated(packed, torch.empty(0, 2 * COLUMNS)).shape == (0, ROWS)


def test_norm_and_gate_are_those_of_modules(scheme: Scheme):
    _, packed = packed_weight(scheme)
    columns = scheme.size(packed)[1]
    x, residual, gain = random(3, columns), random(3, columns, seed=1), random(columns, seed=2)
    packed = dict(scheme.prepare(packed))
    normed = rms_norm_ref(x + residual, gain, 1e-5, 1.0)
    for before, gated in ((residual, False), (residual, True), (None, False)):
        inputs = rms_norm_ref(x, gain, 1e-5, 1.0) if before is None else normed
        out, total = scheme.normed(packed, x, before, Norm(gain, 1e-5, 1.0), gated=gated)
        wanted = scheme.apply(packed, inputs)
        torch.testing.assert_close(out, silu_mul_ref(wanted) if gated else wanted, rtol=2e-2, atol=2e-2)
        assert torch.equal(total, x if before is None else x + before)
    gate_up = random(3, 2 * columns)
    wanted = scheme.apply(packed, silu_mul_ref(gate_up))
    torch.testing.assert_close(scheme.apply_gated(packed, gate_up), wanted, rtol=2e-2, atol=2e-2)


def test_error_is_within_the_bound(scheme: Scheme):
    weight, packed = packed_weight(scheme)
    error = (scheme.unpack(packed) - weight.float()).abs() / largest(scheme, weight)
    assert 0 < error.max() <= scheme.error * (1 + 1e-5)


def test_inputs_are_rounded_where_the_scheme_says_so(scheme: Scheme):
    _, packed = packed_weight(scheme)
    x = random(TOKENS, COLUMNS, seed=1)
    error = (scheme.seen(packed, x) - x).abs().max()
    steps = {None: 0.0, "int8": 0.02 + 1e-6, "fp8": x.abs().max() / 16}
    assert error <= steps[scheme.spec.activation]
    assert (error > 0) == (scheme.spec.activation is not None)


def test_parts_are_the_whole(scheme: Scheme):
    _, packed = packed_weight(scheme)
    whole = scheme.unpack(packed)
    for split, size, dim in (("out", ROWS, 0), ("in", COLUMNS, 1)):
        if split == "in" and scheme.spec.granularity == "group" and scheme.spec.group > size // 2:
            continue
        parts = [part(scheme, packed, start, start + size // 2, split) for start in (0, size // 2)]
        torch.testing.assert_close(torch.cat([scheme.unpack(p) for p in parts], dim), whole, rtol=0, atol=0)


def test_joined_is_side_by_side(scheme: Scheme):
    parts = [packed_weight(scheme, rows, seed)[1] for seed, rows in enumerate((128, 256))]
    whole = join(scheme, parts)
    if whole is None:
        assert "divisor" in parts[0]  # differs from weight to weight
        assert join(scheme, [parts[0], parts[0]]) is not None
        return
    both = torch.cat([scheme.unpack(p) for p in parts])
    torch.testing.assert_close(scheme.unpack(whole), both, rtol=0, atol=0)


def test_survives_a_file(scheme: Scheme, tmp_path):
    _, packed = packed_weight(scheme)
    save_file(packed, tmp_path / "w.safetensors")
    back = load_file(tmp_path / "w.safetensors")
    assert torch.equal(scheme.unpack(back), scheme.unpack(packed))


def test_a_zero_weight_stays_zero(scheme: Scheme):
    packed = scheme.pack(torch.zeros(128, COLUMNS))
    assert torch.equal(scheme.unpack(packed).abs(), torch.zeros(128, COLUMNS))


def test_shapes_that_do_not_fit_are_said(scheme: Scheme):
    assert scheme.fits(ROWS, COLUMNS) is None
    odd = 2 * COLUMNS + 3
    reason = scheme.fits(ROWS, odd)
    if reason is None:  # then it can really be packed
        assert scheme.spec.granularity != "group"
        assert scheme.unpack(scheme.pack(random(ROWS, odd))).shape == (ROWS, odd)
    else:
        assert f"{odd} columns" in reason


def test_a_group_that_would_divide_is_proposed():
    assert SCHEMES["w4a16"].fits(64, 576) == "groups of 128 do not divide 576 columns; groups of 64 would"


def test_a_cut_inside_a_group_is_refused():
    _, packed = packed_weight(SCHEMES["w4a16"])
    with pytest.raises(Refused, match="cannot be cut at columns 0 and 64"):
        part(SCHEMES["w4a16"], packed, 0, 64, "in")


def test_blocks_at_the_edge_may_be_smaller():
    scheme = SCHEMES["fp8_block"]
    weight = random(130, 200)
    packed = scheme.pack(weight)
    assert packed["scale"].shape == (2, 2)
    assert ((scheme.unpack(packed) - weight).abs().max() / weight.abs().max()) < scheme.error
    last = part(scheme, packed, 128, 130, "out")
    assert torch.equal(scheme.unpack(last), scheme.unpack(packed)[128:])
    assert join(scheme, [packed, packed]) is None


def test_names_are_the_schemes_own():
    assert all(scheme.name == name for name, scheme in SCHEMES.items())


def test_the_usual_group_may_be_said():
    assert [scheme_named(name).name for name in ("w4a16_g128_asym", "w8a16_row")] == ["w4a16_asym", "w8a16"]
