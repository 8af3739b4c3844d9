"""A grid holds what its scheme holds, and a search for scales never makes rounding worse."""

import pytest
import torch

from headrace.quant.grid import Search
from headrace.quant.schemes import known

NONE = Search(1, 1.0)
SCHEMES = [name for name, scheme in known().items() if scheme.grid is not None]


def weight(rows: int = 24, columns: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(rows, columns, generator=generator)
    made[:, 7] *= 6
    made[3] = 0
    return made


def round_(
    name: str, weight: torch.Tensor, search: Search, importance: torch.Tensor | None = None
) -> torch.Tensor:
    scheme = known()[name]
    grid = scheme.grid
    assert grid is not None
    scale, zero = grid.scales(weight, torch.float32, search, importance)
    return scheme.unpack(scheme.of_values(grid.rounded(weight, scale, zero), scale, zero))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_search_it_is_the_schemes_own_rounding(name: str, dtype: torch.dtype):
    scheme, w = known()[name], weight().to(dtype)
    grid = scheme.grid
    assert grid is not None
    scale, zero = grid.scales(w.float(), dtype, NONE)
    found, expected = scheme.of_values(grid.rounded(w.float(), scale, zero), scale, zero), scheme.pack(w)
    assert found.keys() == expected.keys()
    for key in found:
        assert found[key].dtype == expected[key].dtype
        if name != "fp8_static":  # has one scale for all rows, which is not the best that it can hold
            assert torch.equal(found[key].float(), expected[key].float()), key


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_search_gains(name: str, weighted: bool):
    w = weight()
    importance = torch.rand(w.shape[1], generator=torch.Generator().manual_seed(1)) ** 4 if weighted else None
    plain, searched = (
        ((round_(name, w, search, importance) - w).square() * (1 if importance is None else importance)).sum(
            1
        )
        for search in (NONE, Search(30, 0.5))
    )
    assert bool((searched <= plain * 1.00001).all())
    if known()[name].spec.bits == 4:
        assert float(searched.sum()) < 0.99 * float(plain.sum())
    assert float(searched[3]) == 0


def test_what_has_no_such_grid():
    assert [name for name in ("nvfp4", "mxfp4", "fp8_block", "sparse24", "q4_0") if known()[name].grid] == []
