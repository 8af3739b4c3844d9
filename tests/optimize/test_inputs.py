"""What a collector says is what plain sums over all rows say."""

import pytest
import torch

from headrace.optimize.inputs import SAMPLE, Collector, Inputs


def collected(x: torch.Tensor, sizes: list[int], hessian: bool = True) -> Inputs:
    collector = Collector(x.shape[1], len(x), {"hessian"} if hessian else set(), "cpu")
    for window in x.split(sizes):
        collector.see(window)
    return collector.finished()


@pytest.mark.parametrize("columns", [24, 300, 2050])
def test_sums_are_those_over_all_rows(columns: int):
    x = torch.randn(150, columns, generator=torch.Generator().manual_seed(0))
    found = collected(x, [70, 70, 10])
    assert found.tokens == 150
    assert found.hessian_KK is not None
    torch.testing.assert_close(found.hessian_KK, x.T @ x, rtol=1e-4, atol=1e-3)
    assert torch.equal(found.hessian_KK, found.hessian_KK.T)
    torch.testing.assert_close(found.square_K, x.square().sum(0))
    assert torch.equal(found.peak_K, x.abs().amax(0))


def test_a_sample_is_spread_evenly_whatever_the_windows():
    x = torch.arange(3 * SAMPLE, dtype=torch.float32)[:, None].expand(-1, 4)
    one, many = collected(x, [3 * SAMPLE], False), collected(x, [500, 500, 536], False)
    assert one.hessian_KK is None
    assert one.sample_TK is not None
    assert many.sample_TK is not None
    assert torch.equal(one.sample_TK, many.sample_TK)
    assert torch.equal(one.sample_TK[:, 0], torch.arange(SAMPLE) * 3.0 + 1)


def test_few_rows_are_all_kept():
    x = torch.randn(5, 4)
    found = collected(x, [5])
    assert found.sample_TK is not None
    assert torch.equal(found.sample_TK, x)


def test_rows_that_did_not_come_are_noticed():
    collector = Collector(4, 10, set(), "cpu")
    collector.see(torch.zeros(9, 4))
    with pytest.raises(AssertionError, match="9 rows of 10"):
        collector.finished()


def test_nothing_known_counts_all_columns_alike():
    found = Inputs.unknown(3)
    assert found.tokens == 0
    assert torch.equal(found.square_K, torch.ones(3))
