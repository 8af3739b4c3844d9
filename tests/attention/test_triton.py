"""When the back end for GPUs makes one launch of what comes before attention and attention, and that it is the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from headrace.attention.torch import Backend as Plain
from headrace.attention.triton import Backend
from headrace.kernels import configs, table
from headrace.kernels.choices import PagedFew
from headrace.kernels.rotate import rotate_store_ref
from tests.attention.test_backends import case, made
from tests.kernels.test_rotate import table_of

ROWS = [(1, 40), (1, 1), (1, 17)]
SHAPE = case(dtype=torch.float16, head_dim=32).values[1]


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A table that says: two launches for up to two rows, one for up to four."""
    use = configs.brief(PagedFew(16, 2, 1, 16))
    rows = [{"head_dim": 64, "rows": 2, "use": None}, {"head_dim": 64, "rows": 4, "use": use}]
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.setattr(configs, "multiprocessors", lambda device: 2)
    table.write(table.own(configs.capability(torch.device("cpu"))), {"few": rows}, {})
    configs.table.cache_clear()
    yield
    configs.table.cache_clear()


def step(
    rows: list[tuple[int, int]], **changes: Any
) -> tuple[Any, Any, tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """A layer that rotates, a batch, what its projection gives, and the two caches."""
    layer, batch, q, _, caches = made(rows, {**SHAPE, **changes}, device="cpu")
    gains = torch.randn(2, layer.head_dim).to(q.dtype)
    layer.rotation = lambda: (table_of(50, layer.head_dim), *gains, 1e-6, 0.0)
    fused = torch.randn(len(q), 2 * layer.kv_heads, layer.head_dim).to(q.dtype)
    return layer, batch, (q, *fused.chunk(2, 1)), caches


def one_launch(backend: Backend, rows: list[tuple[int, int]], **changes: Any) -> Tensor | None:
    layer, batch, qkv, caches = step(rows, **changes)
    backend.plan(batch)
    return backend.run_new(layer, qkv, batch, *caches)


@pytest.mark.parametrize("window", [None, 7])
def test_one_launch_gives_what_two_give(measured: None, window: int | None):
    layer, batch, qkv, caches = step(ROWS, window=window)
    kept = tuple(cache.clone() for cache in caches)
    tested, plain = Backend(), Plain()
    tested.plan(batch)
    plain.plan(batch)
    out = tested.run_new(layer, qkv, batch, *caches)
    turned = rotate_store_ref(*qkv, batch.positions, *layer.rotation(), *kept, batch.slots[layer.group])
    assert out is not None
    torch.testing.assert_close(out, plain.run(layer, turned, batch, *kept), atol=2e-3, rtol=2e-3)
    for cache, wanted in zip(caches, kept, strict=True):
        torch.testing.assert_close(cache, wanted, atol=2e-3, rtol=2e-3, equal_nan=True)


def test_what_the_table_does_not_say_takes_two_launches(measured: None):
    tested = Backend()
    assert one_launch(tested, ROWS) is not None
    assert one_launch(tested, ROWS[:2]) is None
    assert one_launch(tested, [*ROWS, *ROWS]) is None
    assert one_launch(tested, ROWS, head_dim=80) is None


def test_prompts_and_what_other_kernels_do_not_take_take_two_launches(measured: None):
    tested = Backend()
    assert one_launch(tested, [*ROWS, (2, 5)]) is None
    assert one_launch(tested, ROWS, dtype=torch.float32) is None
    assert one_launch(tested, ROWS, size=8) is None
    assert one_launch(Backend(fixed=True), ROWS) is None
