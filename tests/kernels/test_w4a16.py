"""4-bit weights: that the tiles hold them, and that every kernel and every fusion equals its definition in float32."""

import pytest
import torch
from torch.nn import functional

from headrace.kernels.activation import silu_mul_ref
from headrace.kernels.choices import Int4Few, Int4One, Int4Tile, Int4Wide
from headrace.kernels.norm import rms_norm_ref
from headrace.kernels.w4a16 import Int4Weight, linear_w4a16, norm_linear_w4a16, tiled, unpack_ref, values
from headrace.quant.bits import pack_bits
from tests.kernels.closeness import assert_close

# Triton's interpreter multiplies bfloat16 matrices wrongly, so kernels are tried in float16.
SIZES = [(32, 192, 32), (48, 128, 64), (16, 256, 128), (64, 192, 192)]  # N, K, columns of a group
FLAGS = [(False,) * 4, (True, True, True, True), (False, True, False, False), (True, False, False, True)]
"""gated, norm, residual, bias"""


def weight(rows: int, columns: int, group: int, asymmetric: bool, device: torch.device) -> Int4Weight:
    stored = torch.randint(0, 16, (rows, columns), device=device)
    scale = (torch.rand(rows, columns // group, device=device) + 0.5) / columns**0.5 / 4
    zero = torch.randint(-8, 8, scale.shape, device=device, dtype=torch.int8) if asymmetric else None
    return Int4Weight(tiled(pack_bits(stored, 4)), scale.half(), zero)


def case(tokens, n, group, k, asymmetric, flags, device):
    """x, weight, fusion and what the definition makes of them in float32."""
    from headrace.bench.kernels_linear import definition
    from headrace.kernels.gpu.matmul import Fusion

    gated, norm, before, bias = flags
    rows = 2 * n if gated else n

    def draw(*shape):
        return torch.randn(shape, device=device).half()

    x, packed = draw(tokens, k), weight(rows, k, group, asymmetric, device)
    fusion = Fusion(
        draw(rows) if bias else None, draw(k) if norm else None, 1e-5, 0.5, draw(tokens, k) if before else None,
        gated,
    )  # fmt: skip
    return x, packed, fusion, *definition(x, unpack_ref(packed, torch.float32), fusion)


def test_tiles_hold_all_values(device):
    stored = torch.randint(0, 16, (80, 192), device=device)
    tiles = tiled(pack_bits(stored, 4))
    assert tiles.shape == (5, 3, 256)
    assert tiles.dtype == torch.int16
    assert torch.equal(values(tiles).long(), stored)
    # The second lane's first register has row 0, columns 2 and 3; nibble j is 16 j columns further.
    register = tiles[0, 0, 8:10].int()
    for j in range(4):
        assert torch.equal((register >> 4 * j & 15).long(), stored[0, 16 * j + 2 : 16 * j + 4])


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("config", [Int4Few(128, 4), Int4Few(64, 4, 2, True)])
def test_few_tokens_with_every_fusion(device, config, asymmetric):
    from headrace.kernels.gpu.w4a16_few import few

    for tokens in (1, 5, 16):
        for (n, k, group), flags in zip(SIZES[tokens // 9 :], FLAGS[tokens // 9 :], strict=True):
            flags = flags if tokens == 1 else (flags[0], False, False, flags[3])
            x, packed, fusion, wanted, total = case(tokens, n, group, k, asymmetric, flags, device)
            out, kept = few(x, packed, config, fusion)
            assert_close(out, wanted)
            assert_close(kept, total)


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize(
    ("config", "multiprocessors"), [(Int4One(4, 2), 2), (Int4One(1, 8), 4), (Int4One(2, 2, 2, 1), 1)]
)
def test_one_token_with_every_fusion(device, config, multiprocessors, asymmetric):
    """Inputs that warps do and do not fill, in one part and in three; blocks that programs share out unevenly."""
    from headrace.kernels.gpu.product import split_counters
    from headrace.kernels.gpu.w4a16_one import one

    for (n, k, group), flags in zip(
        [*SIZES, (96, 640, 640)], [*FLAGS, (False, True, True, True)], strict=True
    ):
        x, packed, fusion, wanted, total = case(1, n, group, k, asymmetric, flags, device)
        out, kept = one(x, packed, config, multiprocessors, fusion)
        assert_close(out, wanted)
        assert_close(kept, total)
        assert not split_counters(x.device).any()


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("config", [Int4Tile(16, 32, 128, 1, 4, 2), Int4Tile(32, 64, 64, 3, 4, 2)])
def test_tiles_with_every_fusion(device, config, asymmetric):
    from headrace.kernels.gpu.product import split_counters
    from headrace.kernels.gpu.w4a16_tile import tile

    for tokens in (5, 33):
        for (n, k, group), flags in zip(SIZES, FLAGS, strict=True):
            flags = (flags[0], False, False, flags[3])
            x, packed, fusion, wanted, _ = case(tokens, n, group, k, asymmetric, flags, device)
            assert_close(tile(x, packed, config, fusion), wanted)
            assert not split_counters(x.device).any()


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize(("n", "k", "group"), SIZES)
def test_unpacking_is_the_definition(device, n, k, group, asymmetric):
    from headrace.kernels.gpu.w4a16 import unpacked

    packed = weight(n, k, group, asymmetric, device)
    assert_close(unpacked(packed, torch.float32), unpack_ref(packed, torch.float32), 1e-7)


@pytest.mark.parametrize("tokens", [1, 2, 16, 33, 64, 100, 300])
def test_product_chooses_and_composes(device, tokens):
    from headrace.kernels.gpu.w4a16 import product

    x, packed, fusion, wanted, total = case(tokens, 32, 64, 128, True, (True,) * 4, device)
    out, kept = product(x, fusion.before, fusion.gain, 1e-5, 0.5, packed, fusion.bias, True)
    assert_close(out, wanted, 3e-3)
    assert_close(kept, total)


@pytest.mark.parametrize("tokens", [1, 20])
def test_columns_in_an_order_of_their_own(device, tokens):
    from headrace.kernels.gpu.w4a16 import product

    x, packed, _, _, _ = case(tokens, 32, 64, 128, True, (False,) * 4, device)
    gain, order = torch.randn(128, device=device).half(), torch.randperm(128, device=device)
    normed = rms_norm_ref((x + x).float(), gain, 1e-5)[:, order]
    out, kept = product(x, x, gain, 1e-5, 0.0, packed._replace(order=order), None, False)
    assert_close(out, functional.linear(normed, unpack_ref(packed, torch.float32)), 3e-3)
    assert torch.equal(kept, x + x)


def test_public_functions_are_their_compositions():
    packed = weight(32, 128, 64, True, torch.device("cpu"))
    x, gain, bias = torch.randn(3, 128), torch.randn(128), torch.randn(32)
    plain = unpack_ref(packed, torch.float32)
    assert torch.equal(linear_w4a16(x, packed, bias), functional.linear(x, plain, bias))
    assert linear_w4a16(x.view(1, 3, 128), packed).shape == (1, 3, 32)
    assert linear_w4a16(x[:0], packed).shape == (0, 32)
    out, total = norm_linear_w4a16(x, x, gain, 1e-6, 0.0, packed, gated=True)
    assert torch.equal(total, x + x)
    assert_close(out, silu_mul_ref(functional.linear(rms_norm_ref(total, gain, 1e-6), plain)))
    order = torch.randperm(128)
    out, _ = norm_linear_w4a16(x, None, gain, 1e-6, 0.0, packed._replace(order=order))
    assert_close(out, functional.linear(rms_norm_ref(x, gain, 1e-6)[:, order], plain))


@pytest.mark.parametrize("steps", [1, 5, 32])
@pytest.mark.parametrize("tiles", [1, 7, 12, 13, 23, 24, 25, 100])
def test_wide_work_is_shared_out_whole(tiles: int, steps: int):
    pytest.importorskip("triton")
    from headrace.kernels.gpu.gluon import shares

    programs, whole, share = shares(tiles, steps, 12, 1 << 30)
    line = (tiles - whole * programs) * steps
    assert 0 < programs <= 12
    assert programs * share >= line >= 0
    assert programs == 12 or not whole
    assert whole or (programs - 1) * share < line, "a program without work"
    assert share <= 2 * steps, "a program has places in memory for two parts of tiles"
    assert tiles < 12 or share == steps or line > 12 * steps, "tiles in more parts than must be"
    assert tiles != 23 or (whole, share) == (1, steps), "tiles are cut though nearly all programs have two"
    _, _, more = shares(tiles, steps, 12, parts=2)
    assert more == max(share, -(-steps // 2))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "config",
    [Int4Wide(128, n) for n in (16, 32, 64, 128, 256)] + [Int4Wide(256, n) for n in (64, 128)],
    ids=str,
)
def test_every_tile_on_a_device(config: Int4Wide):
    """On sizes that no tile divides, whole and cut: nothing beyond a tensor is read or written."""
    from headrace.kernels.gpu.w4a16_wide import wide

    device = torch.device("cuda", 0)
    for gated, group, asymmetric in ((False, 64, True), (True, 192, False)):
        packed = weight(2 * 304, 1152, group, asymmetric, device)
        x, bias = (
            torch.randn(2 * config.tokens - 3, 1152, device=device).half(),
            torch.randn(608, device=device).half(),
        )
        wanted = functional.linear(x.float(), unpack_ref(packed, torch.float32), bias.float())
        wanted = silu_mul_ref(wanted) if gated else wanted
        assert_close(wide(x, packed, bias, gated, config), wanted, 3e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("group", [32, 64, 128, 192, 0])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize(
    ("n", "k", "gated"),
    [(4096, 14336, False), (14336, 4096, True), (1024, 3072, False), (80, 576, False), (576, 576, True)],
)
def test_real_sizes_on_a_device(n: int, k: int, gated: bool, asymmetric: bool, group: int):
    """Launched twice: what meets in memory must be as before."""
    from headrace.bench.kernels_linear import definition
    from headrace.kernels.gpu.matmul import Fusion
    from headrace.kernels.gpu.product import split_counters
    from headrace.kernels.gpu.w4a16 import product

    if k % (group or 1):
        pytest.skip("groups do not divide the columns")
    torch.backends.cuda.matmul.allow_tf32 = False
    device, rows = torch.device("cuda", 0), 2 * n if gated else n
    packed = weight(rows, k, group or k, asymmetric, device)
    packed = packed._replace(scale=packed.scale.bfloat16())
    gain, bias = torch.randn(k, device=device).bfloat16(), torch.randn(rows, device=device).bfloat16()
    for tokens in (1, 2, 7, 16, 33, 64, 130, 300, 1000):
        x, before = torch.randn(2, tokens, k, device=device).bfloat16().unbind()
        fusion = Fusion(bias, gain, 1e-5, 0.5, before=before, gated=gated)
        wanted, total = definition(x, unpack_ref(packed, torch.float32), fusion)
        for _ in range(2):
            out, kept = product(x, before, gain, 1e-5, 0.5, packed, bias, gated)
            assert_close(out, wanted, 8e-3)
            assert torch.equal(kept, total)
    assert not split_counters(device).any()
