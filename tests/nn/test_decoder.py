"""The decoder: residuals, names, logits, and what is not a parameter."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from headrace.base.errors import Refused
from headrace.nn import decoder
from headrace.nn.decoder import Decoder
from headrace.nn.linear import Linear
from headrace.nn.rope import Rope
from headrace.nn.step import Whole
from headrace.quant.schemes import scheme_named
from tests.nn.test_attention import SHAPE

RENAME = {"blocks.": "model.layers.", "norm.": "model.norm."}


def made(**changes: Any) -> Decoder:
    rope = Rope(6, 100.0, None, 16, 16)
    model = Decoder(replace(SHAPE, **changes), [(None, rope), (2, rope)], RENAME)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5)
    return model


@pytest.mark.parametrize("post_norms", [False, True])
def test_blocks_add_up(post_norms: bool):
    """Handing (x, residual) from block to block equals adding after each half."""
    model, step = made(post_norms=post_norms), Whole(torch.tensor([1, 5, 2, 8]))
    hidden = model.embed_tokens(step.ids)
    for block in model.blocks:
        after_attention = block.self_attn(block.input_layernorm(hidden), step)
        if post_norms:
            hidden = hidden + block.post_attention_layernorm(after_attention)
            hidden = hidden + block.post_feedforward_layernorm(
                block.mlp(block.pre_feedforward_layernorm(hidden))
            )
        else:
            hidden = hidden + after_attention
            hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
    torch.testing.assert_close(model(step), model.norm(hidden))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_deterministic_logits_are_those_of_the_token_alone(tied: bool, softcap: float | None):
    model = made(tied=tied, logits_softcap=softcap, vocab=64)
    hidden = torch.randn(37, 12)
    usual = model.logits(hidden)
    model.set_deterministic()
    assert all(layer.deterministic for layer in model.modules() if isinstance(layer, Linear))
    together = model.logits(hidden)
    torch.testing.assert_close(together, usual)
    for n in (0, 5, 16, 36):
        assert torch.equal(model.logits(hidden[n : n + 1]), together[n : n + 1])


def test_a_head_whose_products_depend_on_company_is_refused(monkeypatch: pytest.MonkeyPatch):
    """The tied one is the embedding, which is no linear layer."""
    monkeypatch.setattr(decoder, "place_is_free", lambda weight: weight.shape[0] != 64)
    with pytest.raises(Refused, match="other company"):
        made(vocab=64).set_deterministic()


def test_attention_layers_go_by_their_names_in_a_checkpoint():
    assert [name for name, _ in made().named_attentions()] == [f"model.layers.{n}.self_attn" for n in (0, 1)]


def test_logits():
    hidden = torch.randn(3, 12)
    tied, own = made(), made(tied=False)
    assert tied.lm_head is None
    assert own.lm_head is not None
    torch.testing.assert_close(tied.logits(hidden), hidden @ tied.embed_tokens.weight.T)
    torch.testing.assert_close(own.logits(hidden), hidden @ own.lm_head.weight.T)
    capped = made(logits_softcap=0.7).logits(hidden)
    torch.testing.assert_close(capped, 0.7 * torch.tanh(tied.logits(hidden) / 0.7))
    assert tied.to(torch.bfloat16).logits(hidden.bfloat16()).dtype == torch.float32


def test_a_packed_head_gets_what_its_kernels_take(monkeypatch: pytest.MonkeyPatch):
    """On a GPU float32 would be unpacked for at each step."""
    model, hidden, seen = made(tied=False, vocab=32, hidden=32), torch.randn(3, 32), []
    head, scheme = model.lm_head, scheme_named("w4a16_g32")
    assert head is not None
    head.become([(scheme, scheme.pack(head.weight.data))])
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    exact = model.logits(hidden)
    model.logits(hidden.bfloat16())
    monkeypatch.setattr(decoder, "on_gpu", lambda *tensors: True)
    near = model.logits(hidden.bfloat16())
    model.logits(hidden)
    assert seen == [torch.float32, torch.float32, torch.float16, torch.float32]
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, rtol=0.02, atol=0.3)


def test_sources_are_views_that_fill_every_weight_once():
    model = made(tied=False, qkv_bias=True, qk_norm=True)
    for parameter in model.parameters():
        parameter.data.zero_()
    names = []
    for name, into in model.sources():
        names.append(name)
        into.add_(1.0)
    assert len(set(names)) == len(names)
    assert all(bool((parameter == 1.0).all()) for parameter in model.parameters())
    assert {"model.norm.weight", "embed_tokens.weight", "lm_head.weight"} < set(names)
    assert {f"model.layers.1.self_attn.{p}_proj.{w}" for p in "qkv" for w in ("weight", "bias")} < set(names)
    assert {"model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"} < set(names)
    assert {"model.layers.0.self_attn.q_norm.weight", "model.layers.0.input_layernorm.weight"} < set(names)
    shapes = {name: into.shape for name, into in model.sources()}
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (24, 12)
    assert shapes["model.layers.0.self_attn.v_proj.bias"] == (12,)


def test_tables_of_a_model_whose_weights_were_assigned():
    plain = made()
    with torch.device("meta"):
        model = made()
    model.load_state_dict(plain.state_dict(), assign=True)
    assert all(layer.rope is not None and layer.rope.table.is_meta for layer in model.attentions)
    model.tables("cpu")
    step = Whole(torch.tensor([1, 5, 2, 8]))
    assert torch.equal(model(step), plain(step))


def test_attentions_in_order():
    model = made()
    assert [layer.cache_index for layer in model.attentions] == [0, 1]
    assert [layer.window for layer in model.attentions] == [None, 2]
    assert [block.attention for block in model.blocks] == model.attentions
