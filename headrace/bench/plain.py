"""A model without an engine: all logits of a window at once, for numbers that need more than the sampled token's."""

import gc
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.base.config import Config, replace_dotted
from headrace.base.errors import Refused
from headrace.checkpoint.config import read_config
from headrace.checkpoint.hub import find
from headrace.engine.start import Notify, find_tokenizer, load_model, look
from headrace.nn.decoder import Decoder
from headrace.nn.step import Whole
from headrace.text.tokenizer import Tokenizer


class Plain(NamedTuple):
    """A loaded model: `name` as it was asked for, `kept` how its weights are (a scheme, "none" or "checkpoint")."""

    name: str
    kept: str
    dtype: torch.dtype
    device: torch.device
    decoder: Decoder
    tokenizer: Tokenizer
    longest: int
    """Tokens that it can read at once."""

    @property
    def said(self) -> str:
        """Name, and how its weights are kept."""
        return label(self.name, self.kept)

    def hidden(self, ids: list[int]) -> Tensor:
        """[T, hidden] after the last norm, of a sequence from its first token on."""
        return self.decoder(Whole(torch.tensor(ids, device=self.device)))


def gpu_name(device: torch.device) -> str | None:
    """None where it is no GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def label(model: str, kept: str) -> str:
    """What a model is called beside others, who may be of the same file."""
    return model if kept in ("none", "checkpoint") else f"{model} as {kept}"


def as_judged(config: Config, model: str, quantization: str = "auto") -> Config:
    """The configuration in which `model` is compared with others.

    auto: a checkpoint that says how it is quantized is multiplied as it says, inputs rounded where it says so; all
    else is unpacked and computed in the model's dtype. What --quantization means elsewhere is about speed, and would
    round a GGUF model once more here.
    """
    if quantization == "auto":
        quantization = "checkpoint" if read_config(find(model)).get("quantization_config") else "none"
    return replace_dotted(config, {"model.path": model, "model.quantization": quantization})


def open_plain(config: Config, progress: Notify | None = None) -> Plain:
    """Load the model that `config` names. Raises what `headrace.engine.start` does, Refused without a tokenizer."""
    # Memory that is not needed here must not be refused: there is no KV cache, and no second request.
    config = replace(config, memory=replace(config.memory, kv_blocks=None))
    found = look(config)
    if found.plan.device.type == "cpu":
        torch.set_num_threads(found.plan.threads)
    tokenizer = find_tokenizer(config, found.path)
    if tokenizer is None:
        raise Refused(f"{config.model.path} has no tokenizer; texts cannot be read", param="model")
    model = load_model(config, found, progress)
    plan = found.plan
    return Plain(
        config.model.path, plan.quantization, plan.dtype, plan.device, model, tokenizer, plan.max_len
    )


def forget() -> None:
    """Give back the memory of models that nobody holds any more, before the next one asks how much there is."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
