"""A KV cache in 8 bits: half the memory, nearly the same answers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.api.llm import LLM
from headrace.api.outputs import RequestOutput
from headrace.engine.request import SamplingParams
from headrace.models import gemma, llama
from tests import tiny

FAMILIES = {"llama": llama.TINY, "gemma": gemma.TINY}
PROMPTS = [{"prompt_token_ids": [3 + (7 * i + n) % 250 for i in range(5 + 6 * n)]} for n in range(5)]
PARAMS = SamplingParams(temperature=0, max_tokens=12, logprobs=0, prompt_logprobs=0)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny.folder(tmp_path / "model", FAMILIES[request.param])


def told(folder: Path, device: str, **names: Any) -> tuple[list[RequestOutput], LLM]:
    llm = LLM(config=tiny.config(folder, device=device, **names))
    return llm.generate(PROMPTS, PARAMS, use_tqdm=False), llm


def prompt_scores(outputs: list[RequestOutput]) -> torch.Tensor:
    """Log-probability of every token of every prompt but its first."""
    tables = [(output.prompt_token_ids, output.prompt_logprobs) for output in outputs]
    return torch.tensor([t[i][ids[i]].logprob for ids, t in tables for i in range(1, len(ids))])


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_told_of_a_prompt_is_nearly_the_same(folder: Path, device: str):
    wide, small = told(folder, device)[0], told(folder, device, kv_cache_dtype="fp8")[0]
    wide_T, small_T = prompt_scores(wide), prompt_scores(small)
    assert 0 < (wide_T - small_T).std() < 0.15 * wide_T.std()


@pytest.mark.parametrize("device", DEVICES)
def test_a_scale_of_the_checkpoint_is_used(tmp_path: Path, device: str):
    """Keys and values a thousand times too large for 8 bits without a scale."""
    folder = tiny.folder(tmp_path / "model", llama.TINY)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith("v_proj.weight"):
            tensor.mul_(4000)
        if name.endswith("o_proj.weight"):
            tensor.div_(4000)
    save_file(tensors, file)
    wide, cut = told(folder, device)[0], told(folder, device, kv_cache_dtype="fp8")[0]
    layers = {name.removesuffix(".v_proj.weight") for name in tensors if name.endswith("v_proj.weight")}
    save_file(tensors | {f"{name}.v_scale": torch.tensor(40.0) for name in layers}, file)
    scaled, llm = told(folder, device, kv_cache_dtype="fp8")
    assert {layer.v_scale for layer in llm.local.engine.runner.model.attentions} == {40.0}
    off, near = ((prompt_scores(wide) - prompt_scores(found)).abs().mean() for found in (cut, scaled))
    assert near < 0.05 < off


@pytest.mark.parametrize("device", DEVICES)
def test_deterministic_holds_with_it(folder: Path, device: str):
    names = {"kv_cache_dtype": "fp8", "deterministic": True} | (
        {"dtype": "bfloat16"} if device == "cuda" else {}
    )
    whole, _ = told(folder, device, **names)
    pieces, _ = told(
        folder, device, **names, max_num_batched_tokens=16, num_gpu_blocks_override=24, max_num_seqs=3
    )
    for one, other in zip(whole, pieces, strict=True):
        assert one.prompt_logprobs == other.prompt_logprobs
        assert one.outputs[0].logprobs == other.outputs[0].logprobs
