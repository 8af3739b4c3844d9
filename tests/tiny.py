"""Tiny random models on disk, with a tokenizer of single bytes; and what a whole forward of one says."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Library
from tokenizers import decoders, pre_tokenizers
from tokenizers import models as kinds
from torch import Tensor

from headrace import models
from headrace.base.config import Config, from_names
from headrace.checkpoint.load import dummy, load, open_source
from headrace.checkpoint.save import save
from headrace.engine.request import SamplingParams
from headrace.models.llama import TINY
from headrace.nn.decoder import Decoder
from headrace.nn.step import Whole
from headrace.text.tokenizer import Tokenizer

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EOS = 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if mood is defined %}({{ mood }}){% endif %}{% endif %}"
)
SMALL: dict[str, Any] = {
    "memory.share": 0.1,
    "num_gpu_blocks_override": 80,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "model.threads": 1,
    "device": "cpu",
}
"""Settings with which a tiny model starts at once and wants little memory."""


def library() -> Library:
    """Every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Library(kinds.BPE({piece: n for n, piece in enumerate([*SPECIALS, *alphabet])}, []))
    made.add_special_tokens(SPECIALS)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def folder(at: Path, config: Mapping[str, Any] = TINY, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint with random weights: config.json, model.safetensors, tokenizer."""
    words = library()
    settings = {**config, "vocab_size": words.get_vocab_size(), "eos_token_id": EOS, **changes}
    with torch.device("meta"):
        model = models.build(settings, 64)
    model.allocate(torch.float32, "cpu")
    dummy(model, seed)
    save(at, model.sources(), settings)
    words.save(str(at / "tokenizer.json"))
    (at / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": TEMPLATE, "eos_token": SPECIALS[EOS], "bos_token": "<|im_start|>"})
    )
    return at


def config(at: Path, **more: Any) -> Config:
    """The folder's model with SMALL settings and `more`."""
    return from_names(**{**SMALL, "model": str(at), **more})


def tokenizer(at: Path) -> Tokenizer:
    return Tokenizer.from_folder(at)


def decoder(at: Path) -> Decoder:
    """The folder's model outside of any engine."""
    settings = json.loads((at / "config.json").read_text())
    with torch.device("meta"):
        model = models.build(settings, settings["max_position_embeddings"])
    model.allocate(torch.float32, "cpu")
    load(model, open_source(at))
    return model.eval()


@torch.inference_mode()
def logits(model: Decoder, ids: Sequence[int]) -> Tensor:
    """[T, vocab] of a sequence in one step without a cache."""
    return model.logits(model(Whole(torch.tensor(ids))))


def penalized(raw_TV: Tensor, prompt: Sequence[int], answer: Sequence[int], params: SamplingParams) -> Tensor:
    """Penalties by the book: one row per token of the answer."""
    out = raw_TV.clone()
    for n, row in enumerate(out):
        counts = torch.bincount(torch.tensor(answer[:n], dtype=torch.int64), minlength=len(row))
        seen = counts > 0
        seen[list(prompt)] = True
        factor = torch.where(row > 0, 1 / params.repetition_penalty, params.repetition_penalty)
        row[seen] *= factor[seen]
        row -= counts * params.frequency_penalty + (counts > 0) * params.presence_penalty
    return out


def assert_greedy(
    model: Decoder, prompt: Sequence[int], answer: Sequence[int], params: SamplingParams | None = None
) -> None:
    """Each token of the answer is the likeliest after all before it, to within rounding."""
    assert answer
    rows = logits(model, [*prompt, *answer[:-1]])[len(prompt) - 1 :]
    rows = penalized(rows, prompt, answer, params or SamplingParams())
    chosen = rows.gather(1, torch.tensor(answer)[:, None])[:, 0]
    assert (rows.max(1).values - chosen).max() < 1e-4
