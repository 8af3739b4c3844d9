"""Every back end against the definition of attention, over a table of shapes, in caches full of NaN."""

from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headrace import attention
from headrace.base.discover import names
from headrace.kernels.paged import movable
from headrace.kernels.rotate import store_kv
from tests.attention.paging import Batch, Pages

BACKENDS = [name for name in names(attention) if name != "backend"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

FP8 = torch.float8_e4m3fn

# (queries, keys) of each row
MIXED = [(1, 1), (1, 17), (5, 5), (3, 20), (0, 9), (1, 64), (33, 33), (2, 2), (1, 5), (16, 40), (0, 0)]
DECODE = [(1, n) for n in (1, 2, 3, 4, 5, 15, 16, 17, 31, 40, 70, 128, 7)]
ALONE = [(1, 40)]
PREFILL = [(2, 2), (17, 17), (40, 40)]
CHUNKS = [(2, 3), (16, 32), (15, 33), (4, 100), (31, 47)]


def module_of(name: str) -> ModuleType:
    return import_module(f"headrace.attention.{name}")


ON_CPU = {name: module_of(name).fits(torch.device("cpu"), 64) is None for name in BACKENDS}
NAMED = [pytest.param(name, marks=() if ON_CPU[name] else pytest.mark.gpu) for name in BACKENDS]


def case(rows: list[tuple[int, int]] = MIXED, **changes: Any) -> Any:
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 64, "window": None, "softcap": None}
    shape |= {"size": 16, "dtype": torch.float32, "kv": None, "k_scale": 1.0, "v_scale": 1.0}
    kind = next(k for k, v in globals().items() if v is rows)
    return pytest.param(rows, shape | changes, id="-".join([kind, *(f"{k}:{v}" for k, v in changes.items())]))


CASES = [
    *(case(rows) for rows in (MIXED, DECODE, PREFILL, CHUNKS)),
    *(
        case(heads=h, kv_heads=k)
        for h, k in ((1, 1), (3, 3), (2, 1), (9, 3), (8, 2), (10, 2), (8, 1), (16, 1))
    ),
    *(
        case(ALONE, size=s, window=w) for s in (1, 16, 64) for w in (None, 7)
    ),  # of one block: nothing to gather
    case(ALONE, size=64, softcap=2.0, heads=9, kv_heads=3),
    *(case(head_dim=d) for d in (80, 96, 128, 256)),
    *(case(size=s) for s in (1, 4, 32, 128)),
    *(case(window=w) for w in (1, 2, 5, 16, 33, 1000)),
    *(case(rows, window=7, size=4) for rows in (DECODE, PREFILL, CHUNKS)),
    *(case(rows, softcap=2.0) for rows in (DECODE, PREFILL, CHUNKS)),
    *(case(softcap=2.0, window=w, size=4, head_dim=128, heads=8) for w in (3, 16)),
    *(case(rows, dtype=torch.bfloat16) for rows in (DECODE, PREFILL, CHUNKS)),
    case(dtype=torch.bfloat16, softcap=3.0, window=9),
    case(dtype=torch.bfloat16, heads=16, kv_heads=1, head_dim=256),
    # What the GPU's own kernels take: 16 bits, blocks of 16 tokens and more.
    *(case(dtype=torch.bfloat16, size=s) for s in (16, 32, 48, 64)),
    *(
        case(dtype=torch.bfloat16, heads=h, kv_heads=k)
        for h, k in ((1, 1), (9, 3), (14, 2), (16, 2), (16, 1))
    ),
    *(case(dtype=torch.bfloat16, head_dim=d) for d in (80, 96, 128, 256)),
    *(case(dtype=torch.bfloat16, head_dim=128, window=w) for w in (1, 16, 33, 1000)),
    *(case(rows, dtype=torch.float16, softcap=2.0, window=20) for rows in (DECODE, PREFILL, CHUNKS)),
    *(case(rows, dtype=torch.bfloat16, kv=FP8, k_scale=0.5, v_scale=2.0) for rows in (MIXED, DECODE, CHUNKS)),
    case(kv=FP8, window=9, softcap=3.0, v_scale=0.25),
]


def define(layer: Any, q_THD: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> Tensor:
    """softmax(q k / sqrt(d)) v, one query and one head at a time."""
    out = torch.zeros(q_THD.shape, dtype=torch.float64)
    for i, h in torch.cartesian_prod(torch.arange(q_THD.shape[0]), torch.arange(layer.heads)).tolist():
        at = len(k_SKD) - len(q_THD) + i
        first = 0 if layer.window is None else max(0, at - layer.window + 1)
        kv = h * layer.kv_heads // layer.heads
        scores = k_SKD[first : at + 1, kv].double() @ q_THD[i, h].double() * layer.scale
        if layer.softcap is not None:
            scores = layer.softcap * torch.tanh(scores / layer.softcap)
        out[i, h] = torch.softmax(scores, 0) @ v_SKD[first : at + 1, kv].double()
    return out


def made(
    rows: list[tuple[int, int]], shape: dict[str, Any], seed: int = 0, device: str = DEVICE
) -> tuple[Any, Batch, Tensor, Any, Any]:
    """A layer, a batch, its queries, the keys and values of each row, and the two caches that hold them."""
    torch.manual_seed(seed)
    layer = SimpleNamespace(**shape, scale=shape["head_dim"] ** -0.5, group=1)
    size, dtype, kept = shape["size"], shape["dtype"], shape["kv"] or shape["dtype"]
    blocks = 2 + sum(-(-keys // size) for _, keys in rows) * 2
    pages = Pages((None, shape["window"]), size, blocks, seed)
    cache_shape = (blocks, size, layer.kv_heads, layer.head_dim)
    caches = tuple(torch.full(cache_shape, float("nan"), device=device).to(kept) for _ in "kv")
    full = [(r, 0, keys) for r, (_, keys) in enumerate(rows)]
    kv = [tuple(torch.randn(keys, *cache_shape[2:]).to(dtype) for _ in "kv") for _, keys in rows]
    before = pages.batch(full, device)  # all keys are written before any block is taken away
    every = (torch.cat(x).to(device) for x in zip(*kv, strict=True))
    store_kv(*every, *caches, before.slots[1], layer.k_scale, layer.v_scale)
    if kept == FP8:  # what 8 bits leave of them
        kv = [
            tuple((x / s).to(FP8).float() * s for x, s in zip(p, (layer.k_scale, layer.v_scale), strict=True))
            for p in kv
        ]
    for r, (queries, keys) in enumerate(rows):  # what a window hides from every query of its row
        hidden = 0 if layer.window is None else max(0, keys - queries - layer.window + 1)
        gone = before.slots[1][sum(k for _, k in rows[:r]) :][:hidden]
        for cache in caches:
            cells = movable(cache).view(-1, *cache_shape[2:])
            cells[gone] = torch.full((), float("nan")).to(kept).view(cells.dtype).to(device)
    batch = pages.batch([(r, keys - queries, keys) for r, (queries, keys) in enumerate(rows)], device)
    q = torch.randn(batch.tokens, layer.heads, layer.head_dim).to(device, dtype)
    return layer, batch, q, kv, caches


def backend(name: str, head_dim: int) -> ModuleType:
    module = module_of(name)
    if reason := module.fits(torch.device(DEVICE), head_dim):
        pytest.skip(reason)
    return module


@pytest.mark.parametrize(("rows", "shape"), CASES)
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", NAMED)
def test_equals_the_definition(name: str, fixed: bool, rows: list[tuple[int, int]], shape: dict[str, Any]):
    tested = backend(name, shape["head_dim"]).Backend(fixed)
    for seed in range(2):  # a second step with the same object: nothing of the first may be left
        layer, batch, q, kv, caches = made(rows, shape, seed)
        tested.plan(batch)
        out = tested.run(layer, q, batch, *caches)
        again = tested.run(layer, q, batch, *caches)  # the next layer of the same kind
        assert out.shape == q.shape
        assert out.dtype == q.dtype
        assert torch.equal(out, again)
        expected = [
            define(layer, q[batch.starts_np[r] : batch.starts_np[r + 1]].cpu(), *kv[r])
            for r in range(len(rows))
        ]
        tolerance = 1e-5 if shape["dtype"] == torch.float32 and DEVICE == "cpu" else 2e-2
        torch.testing.assert_close(out.cpu().double(), torch.cat(expected), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", NAMED)
def test_padding_after_the_last_row_is_zero(name: str, fixed: bool):
    rows = [(1, 5), (3, 9)]
    layer, batch, q, _, caches = made(rows, case().values[1])
    tested = backend(name, layer.head_dim).Backend(fixed)
    tested.plan(batch)
    longer = torch.cat([q, torch.randn_like(q)])
    out = tested.run(layer, longer, batch, *caches)
    torch.testing.assert_close(out[:4], tested.run(layer, q, batch, *caches))
    assert not out[4:].any()


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", NAMED)
def test_a_padded_row_disturbs_no_other(name: str, fixed: bool):
    rows = [(1, 5), (1, 1), (3, 9)]
    layer, batch, q, _, caches = made(rows, case().values[1])
    tested = backend(name, layer.head_dim).Backend(fixed)
    tested.plan(batch)
    expected = tested.run(layer, q, batch, *caches)
    for cache in caches:
        cache[0] = 0.0  # the void block, where padded rows write
    batch.context_np[1] = 0
    batch.context[1] = 0
    for table in batch.tables:
        table[1] = 0
    tested.plan(batch)
    out = tested.run(layer, q, batch, *caches)
    torch.testing.assert_close(out[[0, 2, 3, 4]], expected[[0, 2, 3, 4]])
    assert out.isfinite().all()


CUTS = ([1], [3, 9, 30], [39], list(range(20, 40)), list(range(1, 40)))
"""Where a prompt of 40 tokens after 60 is cut into steps."""


@pytest.mark.parametrize(
    "changes", [{}, {"window": 25}, {"softcap": 2.0}, {"kv": FP8, "k_scale": 0.5}], ids=str
)
@pytest.mark.parametrize("name", NAMED)
def test_fixed_gives_the_same_bits_in_any_chunk_and_any_company(name: str, changes: dict[str, Any]):
    shape = case(dtype=torch.bfloat16 if DEVICE == "cuda" else torch.float32, **changes).values[1]
    layer, batch, q, _, caches = made([(40, 100), (1, 200), (7, 7)], shape)
    tested = backend(name, layer.head_dim).Backend(fixed=True)
    tested.plan(batch)
    whole = tested.run(layer, q, batch, *caches)[:40]
    for cuts in CUTS:
        parts = []
        for a, b in pairwise([0, *cuts, 40]):
            step = one_row(batch, a, b, 60 + b)
            tested.plan(step)
            parts.append(tested.run(layer, q[a:b], step, *caches))
        assert torch.equal(torch.cat(parts), whole), cuts


def one_row(batch: Batch, first: int, stop: int, keys: int) -> Batch:
    """Queries first .. stop of the first row as a step of their own."""
    starts, context = np.array([0, stop - first], np.int32), np.array([keys], np.int32)
    device = batch.context.device
    return replace(
        batch, rows=1, tokens=stop - first, starts=torch.from_numpy(starts).to(device), starts_np=starts,
        context=torch.from_numpy(context).to(device), context_np=context, tables=[t[:1] for t in batch.tables],
    )  # fmt: skip
