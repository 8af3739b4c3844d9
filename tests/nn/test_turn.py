"""A turned and prepacked model says what the plain one says, within what 8 bits lose."""

import copy
from typing import Any

import pytest
import torch

from headrace.base.errors import Refused
from headrace.kernels import int8
from headrace.nn.decoder import Block, Decoder
from headrace.nn.linear import Linear
from headrace.nn.packed import PackedRows
from headrace.nn.prepacked import Prepacked
from headrace.nn.step import Whole
from headrace.nn.turn import Turn
from tests.nn.test_decoder import made

pytestmark = pytest.mark.skipif(int8.missing() is not None, reason="no 8-bit products on this processor")
IDS = torch.tensor([1, 5, 2, 8, 3, 3, 7, 0])


def prepacked(model: Decoder) -> Decoder:
    model.prepack()
    return model.eval()


SHAPES: list[dict[str, Any]] = [
    {},
    {"tied": False},
    {"hidden": 32, "tied": False},
    {"hidden": 16, "norm_offset": 1.0},
    {"hidden": 64, "qkv_bias": True, "out_bias": True, "mlp_bias": True},
    {"hidden": 16, "post_norms": True},
]


@pytest.mark.parametrize("changes", SHAPES)
def test_a_turned_model_is_the_same_model(changes: dict[str, Any]):
    plain = made(**changes)
    turned = prepacked(copy.deepcopy(plain))
    expected, found = plain.logits(plain(Whole(IDS))), turned.logits(turned(Whole(IDS)))
    assert torch.nn.functional.cosine_similarity(expected, found).min() > 0.99
    assert not torch.equal(expected, found)
    assert all(isinstance(layer.packed, Prepacked) for layer in turned.modules() if isinstance(layer, Linear))
    assert turned.embed_tokens.weight.dtype == torch.float16
    assert turned.embed_tokens(IDS).dtype == torch.float32


def test_turning_alone_changes_nothing():
    """Weights folded and turned, but not rounded, multiply to the same."""
    model = made(hidden=16)
    turn, block = Turn(model), model.blocks[0]
    assert isinstance(block, Block)
    x = torch.randn(5, 16)
    weight = block.mlp.gate_up_proj.weight
    expected = block.post_attention_layernorm(x) @ weight.T
    scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + block.post_attention_layernorm.eps)
    torch.testing.assert_close(
        turn.rows(scaled) @ turn.seen(weight, block.post_attention_layernorm).T, expected
    )


@pytest.mark.parametrize("tied", [False, True])
def test_a_prepacked_model_can_be_deterministic(tied: bool):
    model = prepacked(made(hidden=32, tied=tied))
    model.set_deterministic()
    hidden = torch.randn(37, 32)
    together = model.logits(hidden)
    for n in (0, 5, 36):
        assert torch.equal(model.logits(hidden[n : n + 1]), together[n : n + 1])


def test_one_that_depends_on_company_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Prepacked, "place_is_free", lambda self: False)
    with pytest.raises(Refused, match="other company"):
        prepacked(made(hidden=32)).set_deterministic()


@pytest.mark.parametrize("tied", [False, True])
def test_loading_packs_what_has_no_memory(tied: bool):
    plain = made(hidden=16, tied=tied)
    with torch.device("meta"):
        empty = made(hidden=16, tied=tied)
    empty.allocate(torch.float32, "cpu", prepacks=True)
    there = dict(plain.sources())
    for name, target in empty.sources():
        if not target.is_meta:
            target.copy_(there[name])
    for each in empty.pending():
        weight = torch.cat([there[name] for name in each.names])
        assert weight.shape == each.shape
        each.take(weight.to(each.dtype))
    empty.prepack()
    whole = prepacked(copy.deepcopy(plain))
    assert not list(empty.pending())
    assert torch.equal(empty.logits(empty(Whole(IDS))), whole.logits(whole(Whole(IDS))))
    assert not any(
        isinstance(layer.packed, PackedRows) for layer in empty.modules() if isinstance(layer, Linear)
    )
