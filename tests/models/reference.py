"""The same tiny random model twice, transformers' and ours; and a step over a paged cache."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from headrace import models
from headrace.attention.torch import Backend
from headrace.kernels.rotate import store_kv
from headrace.nn.attention import Attention
from headrace.nn.decoder import Decoder
from headrace.nn.step import Entire
from tests import tiny
from tests.attention.paging import Pages

MAX_LEN = 128
LENGTHS = (37, 1, 58)
# (sequence, first position, position after the last) of each row of each step: chunks and decodes mixed, a
# sequence that pauses, a decode next to a whole prompt.
STEPS = (
    [(0, 0, 17), (2, 0, 3)],
    [(2, 3, 4), (0, 17, 18), (1, 0, 1)],
    [(2, 4, 40)],
    *([(0, p, p + 1), (2, p + 22, p + 23)] for p in range(18, 30)),
    [(2, 52, 58), (0, 30, 37)],
)


def theirs(config: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """The transformers model of `config`, every weight random: norms and biases, too."""
    config = deepcopy(config)  # transformers writes into rope_scaling
    kind = {key: value for key, value in config.items() if key not in ("model_type", "rope_freq_factors")}
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(config["model_type"], **kind), attn_implementation="eager", dtype=torch.float32
    )
    for name, parameter in made.named_parameters():
        torch.nn.init.normal_(parameter, std=0.6 if parameter.dim() == 1 or "embed" in name else 0.25)
    return made.eval()


def ours(config: dict[str, Any], reference: PreTrainedModel, max_len: int = MAX_LEN) -> Decoder:
    """Our model of `config`, built without memory, with the weights of `reference`: all, and no others."""
    with torch.device("meta"):
        model = models.build(config, max_len)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    weights = dict(reference.state_dict())
    for name, into in model.sources():
        into.copy_(weights.pop(name))
    assert set(weights) <= ({"lm_head.weight"} if config["tie_word_embeddings"] else set())
    return model


@torch.no_grad()
def expected(reference: PreTrainedModel, ids: Tensor) -> Tensor:
    """[T, vocab] of one sequence."""
    return reference(ids[None]).logits[0]


def sequences(config: dict[str, Any], seed: int = 1) -> list[Tensor]:
    """Random ids of LENGTHS."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(config["vocab_size"], (n,), generator=generator) for n in LENGTHS]


class Paged(Entire):
    """Steps over caches in which every cell that was not written is NaN; one layer group per window."""

    def __init__(self, model: Decoder, size: int):
        windows = list(dict.fromkeys(layer.window for layer in model.attentions))
        blocks = 2 + len(windows) * sum(-(-n // size) for n in LENGTHS)
        self.pages = Pages(windows, size, blocks)
        self.model, self.backend = model, Backend()
        for layer in model.attentions:
            layer.group = windows.index(layer.window)
        shape = (blocks, size, model.shape.kv_heads, model.shape.head_dim)
        self.caches = [torch.full((2, *shape), float("nan")) for _ in model.attentions]

    @torch.no_grad()
    def run(self, rows: Sequence[tuple[int, int, int]], ids: list[Tensor]) -> list[Tensor]:
        """The logits of each row's tokens."""
        self.batch = self.pages.batch(rows)
        self.ids = torch.cat([ids[seq][start:stop] for seq, start, stop in rows])
        self.positions = self.batch.positions
        self.backend.plan(self.batch)
        return list(self.model.logits(self.model(self)).split([stop - start for _, start, stop in rows]))

    def attend(self, layer: Attention, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """See nn.step.Step."""
        q_THD, k_TKD = layer.rotate(q_THD, k_TKD, self.positions)
        k_cache, v_cache = self.caches[layer.cache_index]
        store_kv(k_TKD, v_TKD, k_cache, v_cache, self.batch.slots[layer.group])
        return self.backend.run(layer, q_THD, self.batch, k_cache, v_cache)


def paged(model: Decoder, ids: list[Tensor], size: int) -> list[Tensor]:
    """[T, vocab] of each sequence, in mixed chunks through a paged cache."""
    step, found = Paged(model, size), [[] for _ in ids]
    for rows in STEPS:
        for (seq, _, _), logits in zip(rows, step.run(rows, ids), strict=True):
            found[seq].append(logits)
    return [torch.cat(parts) for parts in found]


def agree(config: dict[str, Any]) -> None:
    """Whole and paged, our logits are those of transformers, and differ enough for that to mean something."""
    reference = theirs(config)
    model, ids = ours(config, reference), sequences(config)
    wanted = [expected(reference, sequence) for sequence in ids]
    assert min(logits.std() for logits in wanted) > 0.3
    assert (wanted[0][1:] - wanted[0][:-1]).abs().max() > 1
    for sequence, logits in zip(ids, wanted, strict=True):
        torch.testing.assert_close(tiny.logits(model, sequence.tolist()), logits, atol=1e-3, rtol=0)
    for size in (4, 16):
        for found, logits in zip(paged(model, ids, size), wanted, strict=True):
            torch.testing.assert_close(found, logits, atol=1e-3, rtol=0)
