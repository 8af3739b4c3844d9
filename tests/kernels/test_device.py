"""Kernels of linear layers as a GPU runs them: real sizes, launches that overlap, sums that meet in memory.

Triton's interpreter shows none of this: it has no timing, no matrix units, and multiplies bfloat16 wrongly.
"""

import pytest
import torch

pytest.importorskip("triton")

from headrace.bench.kernels_linear import definition
from headrace.kernels import configs
from headrace.kernels.choices import Gemv, Skinny, Wide
from tests.kernels.closeness import assert_close

pytestmark = pytest.mark.gpu

BOUND = 6e-3
# N, K: layers of real models, and sizes that no tile divides
SHAPES = [(4096, 1024), (1024, 2048), (1024, 3072), (4096, 14336), (1023, 1000), (77, 576), (5, 4104)]
# gated, norm, before, bias
FUSIONS = [
    (False,) * 4, (True, True, False, False), (False, True, True, True), (True, True, True, True),
]  # fmt: skip


@pytest.fixture(autouse=True)
def poisoned():
    """New tensors are full of NaN, and sums of the definition are not rounded to 10 bits on the way."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda").bfloat16()


def problem(tokens: int, n: int, k: int, flags: tuple[bool, ...]):
    """x, weight, fusion and what the definition makes of them."""
    from headrace.kernels.gpu.matmul import Fusion

    gated, norm, before, bias = flags
    rows = 2 * n if gated else n
    x, weight = draw(tokens, k), (torch.randn(rows, k, device="cuda") / k**0.5).bfloat16()
    fusion = Fusion(
        draw(rows) if bias else None, draw(k) if norm else None, 1e-5, 0.5,
        draw(tokens, k) if norm and before else None, gated,
    )  # fmt: skip
    return x, weight, fusion, *definition(x, weight, fusion)


@pytest.mark.parametrize("flags", FUSIONS, ids=lambda f: "".join("01"[x] for x in f))
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_products_of_all_sizes(n: int, k: int, flags: tuple[bool, ...]):
    from headrace.kernels.gpu.matmul import product, skinny

    for tokens in (1, 2, 16, 33, 64, 130, 700):
        x, weight, fusion, wanted, total = problem(tokens, n, k, flags)
        for deterministic in (False, True):
            out, kept = product(x, weight, fusion, deterministic=deterministic)
            assert_close(out, wanted, BOUND)
            assert_close(kept, total, 0.0)
        if tokens in (16, 64) and fusion.gain is None:
            for split in (1, 5):
                config = Skinny(32, 64, split, 4, 3)
                assert_close(skinny(x, weight, config, fusion, pdl=configs.pdl(x.device)), wanted, BOUND)


@pytest.mark.parametrize(
    ("n", "k", "gated"), [(1024, 2048, False), (151, 4104, False), (4096, 1024, True), (320, 576, True)]
)
def test_deterministic_rows_do_not_depend_on_how_many_there_are(n: int, k: int, gated: bool):
    """Through every tile: few tokens, more, and many by TMA."""
    from headrace.kernels.gpu.matmul import product

    x, weight, fusion, _, _ = problem(700, n, k, (gated, True, False, False))
    together, _ = product(x, weight, fusion, deterministic=True)
    for first, stop in ((0, 1), (3, 10), (0, 64), (1, 66), (65, 265), (200, 328), (100, 400), (699, 700)):
        alone, _ = product(x[first:stop], weight, fusion, deterministic=True)
        assert torch.equal(alone, together[first:stop]), f"rows {first} to {stop}"


def test_sums_that_meet_in_memory_do_not_depend_on_timing():
    from headrace.kernels.gpu.matmul import skinny, split_counters

    x, weight, fusion, _, _ = problem(16, 1024, 3072, FUSIONS[0])
    outs = [skinny(x, weight, Skinny(32, 128, 8, 4, 4), fusion) for _ in range(20)]
    assert all(torch.equal(outs[0], out) for out in outs)
    assert not split_counters(x.device).any()


# tokens, N, K, gated, type of the output
PRODUCTS = [
    (256, 1024, 1024, False, None), (200, 1000, 1032, True, None), (77, 300, 4096, False, torch.float32),
    (513, 5000, 1024, False, torch.float32), (65, 20000, 1024, True, None),
]  # fmt: skip
TILES = [
    Wide(128, 256, 64, 8, 4), Wide(256, 128, 64, 8, 4), Wide(128, 128, 64, 8, 3, 2), Wide(64, 256, 64, 4, 4),
    Wide(64, 128, 64, 4, 4, 2),
]  # fmt: skip


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_tiles_of_many_tokens(tile: Wide):
    from headrace.kernels.gpu.product import multiply

    if configs.capability(torch.device("cuda")) < (9, 0):
        pytest.skip("tiles of this size need the shared memory of compute capability 9.0")
    for tokens, n, k, gated, dtype in PRODUCTS:
        x, weight, fusion, wanted, _ = problem(tokens, n, k, (gated, False, False, bool(tokens % 2)))
        outs = [multiply(x, weight, tile, fusion, dtype, configs.pdl(x.device)) for _ in range(3)]
        assert_close(outs[0], wanted, BOUND)
        assert all(torch.equal(outs[0], out) for out in outs)


@pytest.mark.parametrize("tokens", [1, 16])
def test_launches_that_overlap_read_nothing_too_early(tokens: int):
    """Two inputs take turns, so that a value read too early is the other input's and shows."""
    from headrace.kernels.gpu.matmul import gemv, skinny
    from headrace.kernels.gpu.norm import normalize

    torch.use_deterministic_algorithms(False)  # fills between our kernels would keep them from overlapping
    weights = [(torch.randn(1024, 1024, device="cuda") / 32).bfloat16() for _ in range(40)]
    gain = draw(1024).abs() + 0.5

    def chain(x: torch.Tensor, pdl: bool) -> torch.Tensor:
        for i, weight in enumerate(weights):
            x, _ = normalize(x, None, gain, 1e-6, 0.0, pdl)
            if tokens == 1:
                x, _ = gemv(x, weight, Gemv(2, 512 << i % 2, 4), pdl=pdl)
            else:
                x = skinny(x, weight, Skinny(32, 128, 1 + i % 4, 4, 4), pdl=pdl)
        return x

    inputs = [draw(tokens, 1024) for _ in range(2)]
    wanted = [chain(x, False) for x in inputs]
    x, pdl = inputs[0].clone(), configs.pdl(torch.device("cuda"))
    chain(x, pdl)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain(x, pdl)
    for i in range(200):
        x.copy_(inputs[i % 2])
        graph.replay()
        assert torch.equal(out, wanted[i % 2])
