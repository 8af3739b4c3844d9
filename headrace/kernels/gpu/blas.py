"""A product by cuBLASLt with an algorithm that was chosen by measurement: the library's own choice is up to 15% slower.

M tokens, N outputs, K inputs; in the library's terms, which count columns first, an N x M product of the transposed
weight and x. Algorithms are named by what the library says of them (`Blas`), tried with `cublasLtMatmulAlgoCheck`
before they are used. Numbers and structures: NVIDIA's cublasLt.h, of version 12 and later.
"""

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import byref, c_float, c_int, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from functools import cache, lru_cache
from typing import Any
from weakref import finalize

import torch
from torch import Tensor

from headrace.kernels.choices import Blas

TYPES = {torch.bfloat16: 14, torch.float16: 2, torch.float32: 0}
"""cudaDataType_t."""
FLOAT32_SUMS = 68
TRANSPOSE_FIRST = 3
"""CUBLAS_COMPUTE_32F; CUBLASLT_MATMUL_DESC_TRANSA."""
MOST_WORKSPACE = 1
"""CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES."""
ID, SPLITS = 0, 2
ATTRIBUTES = {"tile": 1, "swizzle": 4, "custom": 5, "stages": 6, "inner": 7, "cluster": 8}
"""cublasLtMatmulAlgoConfigAttributes_t; the last two are numbers of 16 bits."""
WORKSPACE = 1 << 25
"""Bytes that an algorithm may have to itself: as many as torch gives the library on this generation."""
PROPOSALS = 40
Algorithm = c_uint64 * 8
"""cublasLtMatmulAlgo_t."""


class Proposal(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", Algorithm),
        ("workspace", c_size_t),
        ("status", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class Failed(RuntimeError):
    """A call of the library did."""


def _call(name: str, *arguments: object) -> None:
    status = getattr(_library(), name)(*arguments)
    if status:
        raise Failed(f"{name} failed with status {status}")


@cache
def _library() -> Any:
    """That which torch has loaded. Raises Failed where there is none, OSError where it has another name."""
    if torch.version.cuda is None:
        raise Failed("torch was built without CUDA")
    return ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.partition('.')[0]}")


@cache
def _handle(device: int) -> c_void_p:
    """One per device, which must be the current one."""
    handle = c_void_p()
    _call("cublasLtCreate", byref(handle))
    return handle


@cache
def _workspace(device: torch.device) -> Tensor:
    """Whose contents are of no use between launches; one stream per device computes."""
    assert not torch.cuda.is_current_stream_capturing(), "run once before capturing"
    return torch.empty(WORKSPACE, dtype=torch.uint8, device=device)


class Product:
    """out [M, N] = x @ weight.T for one shape, [M, K] with a distance between rows: what the library calls it."""

    def __init__(
        self, m: int, n: int, k: int, stride: int, dtype: torch.dtype, out_dtype: torch.dtype, device: int
    ):
        self.handle, self.types = _handle(device), (TYPES[dtype], TYPES[out_dtype])
        self.operation = self._made("cublasLtMatmulDesc", FLOAT32_SUMS, 0)
        _call("cublasLtMatmulDescSetAttribute", self.operation, TRANSPOSE_FIRST, byref(c_int(1)), c_size_t(4))
        self.weight, self.x, self.out = (
            self._made("cublasLtMatrixLayout", kind, c_uint64(rows), c_uint64(columns), c_uint64(distance))
            for kind, rows, columns, distance in (
                (TYPES[dtype], k, n, k),
                (TYPES[dtype], k, m, stride),
                (TYPES[out_dtype], n, m, n),
            )
        )

    def _made(self, kind: str, *arguments: object) -> c_void_p:
        """A structure of the library, which is there as long as this."""
        made = c_void_p()
        _call(f"{kind}Create", byref(made), *arguments)
        finalize(self, getattr(_library(), f"{kind}Destroy"), made).atexit = False
        return made

    def proposals(self, workspace: int) -> Iterator[Blas]:
        """What the library would choose among, if algorithms had so many bytes; best first by its own reckoning."""
        preference, most = self._made("cublasLtMatmulPreference"), c_uint64(workspace)
        _call("cublasLtMatmulPreferenceSetAttribute", preference, MOST_WORKSPACE, byref(most), c_size_t(8))
        found, count = (Proposal * PROPOSALS)(), c_int()
        _call(
            "cublasLtMatmulAlgoGetHeuristic", self.handle, self.operation, self.weight, self.x, self.out, self.out,
            preference, PROPOSALS, found, byref(count),
        )  # fmt: skip
        for one in found[: count.value]:
            if _said(one.algorithm, SPLITS, c_uint32) <= 1:
                names = {name: _said(one.algorithm, at, _kind(name)) for name, at in ATTRIBUTES.items()}
                yield Blas(_said(one.algorithm, ID, c_uint32), **names)

    def algorithm(self, config: Blas) -> Any:
        """As the library has it. Raises Failed where this version, device or shape does not have it."""
        made, found = Algorithm(), Proposal()
        kind, out = self.types
        types = kind, kind, out, out
        _call("cublasLtMatmulAlgoInit", self.handle, FLOAT32_SUMS, 0, *types, config.algorithm, made)
        for name, at in ATTRIBUTES.items():
            value = _kind(name)(getattr(config, name))
            size = c_size_t(ctypes.sizeof(value))
            _call("cublasLtMatmulAlgoConfigSetAttribute", made, at, byref(value), size)
        _call(
            "cublasLtMatmulAlgoCheck", self.handle, self.operation, self.weight, self.x, self.out, self.out, made,
            byref(found),
        )  # fmt: skip
        if found.status or found.workspace > WORKSPACE:
            raise Failed(f"{config} is not for this product")
        return made


def _kind(name: str) -> type[c_uint16] | type[c_uint32]:
    return c_uint16 if name in ("inner", "cluster") else c_uint32


def _said(algorithm: Any, attribute: int, kind: type[c_uint16] | type[c_uint32]) -> int:
    value, written = kind(), c_size_t()
    size = c_size_t(ctypes.sizeof(value))
    said = byref(value), size, byref(written)
    _call("cublasLtMatmulAlgoConfigGetAttribute", byref(algorithm), attribute, *said)
    return value.value


@lru_cache(maxsize=4096)
def _prepared(
    config: Blas, m: int, n: int, k: int, stride: int, dtype: torch.dtype, out_dtype: torch.dtype, device: int
) -> tuple[Product, Any] | None:
    """A product and its algorithm; None where it is not to be had."""
    try:
        product = Product(m, n, k, stride, dtype, out_dtype, device)
        return product, product.algorithm(config)
    except (Failed, OSError, AttributeError):
        return None


def candidates(
    m: int, others: Sequence[int], n: int, k: int, dtype: torch.dtype, out_dtype: torch.dtype, device: int
) -> list[Blas]:
    """Algorithms that the library has for a product, of those that it proposes for it or for `others` tokens.

    There are none if it cannot be asked.
    """

    def has(config: Blas) -> bool:
        return _prepared(config, m, n, k, k, dtype, out_dtype, device) is not None

    try:
        found = [
            one
            for tokens in (m, *others)
            for workspace in (0, WORKSPACE)
            for one in Product(tokens, n, k, k, dtype, out_dtype, device).proposals(workspace)
        ]
    except (Failed, OSError, AttributeError):
        return []
    return [one for one in dict.fromkeys(found) if has(one)]


ONE, ZERO = c_float(1), c_float(0)


def multiply(x: Tensor, weight: Tensor, config: Blas, out_dtype: torch.dtype) -> Tensor | None:
    """[M, N] of x [M, K] and a contiguous weight [N, K], rows beginning at multiples of 16 bytes.

    None, and nothing is done, where the library does not have this algorithm for them.
    """
    (m, k), n = x.shape, weight.shape[0]
    device = x.device.index
    prepared = _prepared(config, m, n, k, x.stride(0), x.dtype, out_dtype, device)
    if prepared is None:
        return None
    product, algorithm = prepared
    out = torch.empty((m, n), dtype=out_dtype, device=x.device)
    at, stream = c_void_p(out.data_ptr()), c_void_p(torch.cuda.current_stream(x.device).cuda_stream)
    workspace = c_void_p(_workspace(x.device).data_ptr())
    status = _library().cublasLtMatmul(
        product.handle, product.operation, byref(ONE), c_void_p(weight.data_ptr()), product.weight,
        c_void_p(x.data_ptr()), product.x, byref(ZERO), at, product.out, at, product.out, algorithm, workspace,
        c_size_t(WORKSPACE), stream,
    )  # fmt: skip
    return None if status else out
