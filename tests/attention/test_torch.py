"""What the reference back end does besides giving the right numbers."""

from typing import Any

import pytest
import torch

from headrace.attention import torch as reference
from headrace.attention.torch import Backend, causal_bias, dense
from tests.attention.test_backends import CHUNKS, DECODE, MIXED, case, made


@pytest.mark.parametrize("changes", [{}, {"window": 6, "size": 4}, {"softcap": 2.0}], ids=str)
@pytest.mark.parametrize("room", [1, 300 * 128, 1 << 30])
def test_the_size_of_bunches_changes_nothing(monkeypatch: Any, room: int, changes: dict[str, Any]):
    layer, batch, q, _, caches = made(DECODE, case(**changes).values[1], device="cpu")
    expected, tested = Backend(), Backend()
    expected.plan(batch)
    before = expected.run(layer, q, batch, *caches)
    monkeypatch.setattr(reference, "BUNCH_CPU", room)
    tested.plan(batch)
    torch.testing.assert_close(tested.run(layer, q, batch, *caches), before)


def test_bunches_hold_all_decoding_rows_longest_first(monkeypatch: Any):
    layer, batch, *_ = made(MIXED, case().values[1], device="cpu")
    monkeypatch.setattr(reference, "BUNCH_CPU", 40 * layer.kv_heads * layer.head_dim)
    bunches = list(reference._bunches(layer, batch, 16))
    assert [bunch.bias.shape[2] for bunch in bunches] == [64, 17, 1]
    starts = [int(batch.starts_np[MIXED.index((1, n))]) for n in (64, 17, 5, 1)]
    assert torch.cat([bunch.queries for bunch in bunches]).tolist() == starts


def test_scores_in_parts_equal_scores_at_once(monkeypatch: Any):
    layer, batch, q, _, caches = made(CHUNKS, case(softcap=2.0).values[1], device="cpu")
    tested = Backend()
    tested.plan(batch)
    before = tested.run(layer, q, batch, *caches)
    monkeypatch.setattr(reference, "SCORES", 1000)
    torch.testing.assert_close(tested.run(layer, q, batch, *caches), before)


def test_buffers_from_inference_mode_serve_outside_of_it():
    layer, batch, q, _, caches = made(DECODE, case().values[1], device="cpu")
    tested = Backend()
    with torch.inference_mode():
        tested.plan(batch)
        before = tested.run(layer, q, batch, *caches)
    assert torch.equal(tested.run(layer, q, batch, *caches), before)


def test_layers_of_two_kinds_do_not_share_indices():
    layer, batch, q, _, caches = made(DECODE, case().values[1], device="cpu")
    tested = Backend()
    tested.plan(batch)
    wide = tested.run(layer, q, batch, *caches)
    layer.window = 3
    narrow = tested.run(layer, q, batch, *caches)
    short = [r for r, (_, keys) in enumerate(DECODE) if keys <= 3]
    torch.testing.assert_close(narrow[short], wide[short])
    assert (narrow - wide).abs().amax((1, 2)).gt(1e-3).tolist() == [keys > 3 for _, keys in DECODE]


def test_causal_bias_by_hand():
    hidden = causal_bias(2, 4, 2, torch.float32, torch.device("cpu")).isinf()
    assert hidden.tolist() == [[True, False, False, True], [True, True, False, False]]


def test_softcap_without_bias_is_causal():
    q, k, v = torch.randn(3, 5, 2, 8)
    bias = causal_bias(5, 5, None, torch.float32, q.device)
    torch.testing.assert_close(dense(q, k, v, None, 0.3, 2.0), dense(q, k, v, bias, 0.3, 2.0))
    torch.testing.assert_close(
        dense(q, k, v, None, 0.3, 1e4), dense(q, k, v, None, 0.3), atol=1e-4, rtol=1e-4
    )
