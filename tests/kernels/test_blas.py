"""Products by algorithms of the library that are asked for."""

import pytest
import torch

from headrace.kernels.choices import Blas
from headrace.kernels.gpu import blas, matmul
from headrace.kernels.gpu.product import Fusion
from tests.kernels.closeness import assert_close

UNKNOWN = Blas(algorithm=9999, tile=1, stages=1)
SHAPES = ((1, 64, 128), (96, 384, 256), (130, 6144, 4096), (256, 1000, 520), (1024, 2048, 1024))


def test_without_cuda_nothing_is_proposed_and_the_library_chooses():
    if torch.version.cuda is not None:
        pytest.skip("torch was built with CUDA")
    x, weight = torch.randn(70, 64), torch.randn(96, 64)
    assert blas.candidates(70, (64,), 96, 64, x.dtype, x.dtype, 0) == []
    found = matmul.multiply_by(UNKNOWN, x, weight, Fusion(), None, pdl=False)
    assert torch.equal(found, torch.nn.functional.linear(x, weight))


@pytest.mark.gpu
@pytest.mark.parametrize("out_dtype", [None, torch.float32])
@pytest.mark.parametrize("gated", [False, True])
def test_an_algorithm_that_is_not_there_is_left_to_the_library(gated: bool, out_dtype: torch.dtype | None):
    x, weight = (torch.randn(rows, 64, device="cuda", dtype=torch.bfloat16) for rows in (70, 96))
    assert blas.multiply(x, weight, UNKNOWN, torch.bfloat16) is None
    found = matmul.multiply_by(UNKNOWN, x, weight, Fusion(gated=gated), out_dtype, pdl=False)
    assert torch.equal(found, matmul.library(x, weight, Fusion(gated=gated), out_dtype, pdl=False))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("wide", [False, True])
def test_every_algorithm_proposed_gives_the_product(
    shape: tuple[int, int, int], dtype: torch.dtype, wide: bool
):
    m, n, k = shape
    out_dtype = torch.float32 if wide else dtype
    weight = torch.randn(n, k, device="cuda").to(dtype)
    x = torch.randn(m, k + 8, device="cuda").to(dtype)[:, :k]  # rows further apart than they are long
    wanted = x.double() @ weight.double().T
    found = blas.candidates(m, (64, 2048), n, k, dtype, out_dtype, 0)
    assert found
    for config in found:
        out = blas.multiply(x, weight, config, out_dtype)
        assert out is not None
        assert out.dtype == out_dtype
        assert_close(out, wanted, 1e-5 if wide else None)


@pytest.mark.gpu
@pytest.mark.usefixtures("cache_of_memory")
def test_it_can_be_recorded():
    weight, x = (torch.randn(rows, 256, device="cuda", dtype=torch.bfloat16) for rows in (512, 128))
    config, *_ = blas.candidates(128, (), 512, 256, x.dtype, x.dtype, 0)
    wanted, graph = blas.multiply(x, weight, config, x.dtype), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = blas.multiply(x, weight, config, x.dtype)
    x.mul_(2)
    graph.replay()
    assert wanted is not None
    assert found is not None
    torch.testing.assert_close(found, wanted * 2)
