"""Everything is decided before anything is loaded; what does not fit is refused with a setting that does."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import models
from headrace.base.config import Config, from_names
from headrace.base.errors import Refused, UnknownName
from headrace.base.hardware import Hardware
from headrace.engine.blocks import blocks_for
from headrace.engine.layout import lay_out
from headrace.engine.resolve import (
    Plan,
    pick_attention,
    pick_deterministic,
    pick_device,
    pick_dtype,
    pick_kv_dtype,
    pick_quantization,
    resolve,
)
from headrace.engine.room import workspace
from headrace.kernels import int8
from headrace.models import gemma, llama

MIB = 2**20
WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32, "num_hidden_layers": 8}
BIG = llama.TINY | WIDE | {"max_position_embeddings": 4096, "vocab_size": 2000}


def plan(free: int = 1 << 30, settings: dict[str, Any] = BIG, **names: Any) -> Plan:
    def build(max_len: int):
        with torch.device("meta"):
            return models.build(settings, max_len)

    config = from_names(**{"device": "cpu", **names})
    return resolve(config, settings, Hardware(3, 2 * free, free), build, None)


def hinted(fault: Refused) -> dict[str, Any]:
    """The settings that a hint proposes."""
    flags = {
        "--memory.share": "memory.share",
        "--max-len": "max_model_len",
        "--memory.kv-blocks": "num_gpu_blocks_override",
    }
    found = re.findall(r"(--[\w.-]+) ([\d.]+)", fault.hint)
    return {flags[flag]: float(value) if "." in value else int(value) for flag, value in found}


def test_nothing_is_left_open():
    made = plan()
    assert (made.device, made.dtype, made.attention, made.threads) == (
        torch.device("cpu"),
        torch.float32,
        "torch",
        3,
    )
    assert (made.max_len, made.block, made.tokens, made.rows) == (4096, 16, 512, 64)
    assert (made.overlap, made.graphs, made.policy, made.prefix_cache) == (False, False, "arrival", True)
    assert "auto" not in repr(made)
    assert made.architecture == "llama"
    assert made.parameters == sum(p.numel() for p in models.build(BIG, 8).parameters())


def test_memory_is_arithmetic():
    made = plan()
    memory = made.memory
    assert (memory.free, memory.allowed) == (1 << 30, 1 << 29)
    assert memory.weights == made.parameters * 4 + 4096 * 32 * 4  # the rope table too
    assert memory.workspace == workspace(BIG, 6 * 32, 512 + 64, 64, torch.float32)
    assert memory.kv_cache == made.kv_blocks * 2 * 8 * 16 * 2 * 32 * 4
    assert memory.total <= memory.allowed
    assert memory.total + memory.kv_cache // made.kv_blocks > memory.allowed  # not one block more
    assert made.kv_tokens == made.kv_blocks * 16


def test_no_more_blocks_than_all_rows_can_use():
    made = plan(free=1 << 36)
    assert made.kv_blocks == 64 * 4096 // 16


def test_half_the_type_is_half_the_memory():
    whole, half = plan(), plan(dtype="bfloat16")
    tables = 4096 * 32 * 4  # of the rope stay float32
    assert (half.memory.weights - tables) * 2 == whole.memory.weights - tables
    assert half.kv_blocks > 2 * whole.kv_blocks


def test_eight_bits_of_cache_are_a_quarter_of_thirty_two():
    whole, small = plan(64 << 20), plan(64 << 20, kv_cache_dtype="fp8")
    assert (whole.kv_dtype, small.kv_dtype) == (torch.float32, torch.float8_e4m3fn)
    assert small.memory.kv_cache == small.kv_blocks * 2 * 8 * 16 * 2 * 32
    assert small.memory.weights == whole.memory.weights
    assert 4 * whole.kv_blocks <= small.kv_blocks < 4 * (whole.kv_blocks + 1)


def test_a_gpu_without_small_floats_has_no_small_cache(monkeypatch: pytest.MonkeyPatch):
    config = from_names(kv_cache_dtype="fp8")
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert pick_kv_dtype(config, torch.bfloat16, gpu) == torch.float8_e4m3fn
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(Refused, match="8-bit"):
        pick_kv_dtype(config, torch.bfloat16, gpu)
    assert pick_kv_dtype(from_names(), torch.bfloat16, gpu) == torch.bfloat16


def test_deterministic_is_part_of_the_plan():
    assert plan(deterministic=True).deterministic
    assert not plan().deterministic


@pytest.mark.parametrize("asked", ["auto", True, False])
@pytest.mark.parametrize("resumes", [True, False])
@pytest.mark.parametrize("quantization", ["int8", "none", "checkpoint"])
def test_where_nobody_says_bits_are_kept_if_requests_outlive_the_engine_and_it_is_cheap(
    asked: str | bool, resumes: bool, quantization: str
):
    wanted = (resumes and quantization == "int8") if asked == "auto" else asked
    assert pick_deterministic(from_names(deterministic=asked), quantization, resumes) is wanted


def test_rows_are_no_more_than_tokens():
    assert plan(max_num_batched_tokens=7).rows == 7
    assert plan(max_num_seqs=3).rows == 3


@pytest.mark.parametrize(("said", "overlap"), [("on", True), ("off", False), ("auto", False)])
def test_overlap(said: str, overlap: bool):
    assert plan(**{"schedule.overlap": said}).overlap is overlap


def test_guesses_are_made_where_no_step_is_planned_ahead():
    assert plan().speculate == 8
    assert plan(**{"schedule.overlap": "on"}).speculate == 0
    assert plan(**{"schedule.overlap": "on", "schedule.speculate": 0}).overlap
    assert plan(**{"schedule.speculate": 3}).speculate == 3
    with pytest.raises(Refused, match="guesses what follows"):
        plan(**{"schedule.overlap": "on", "schedule.speculate": 3})


def test_what_was_asked_for_stands():
    made = plan(
        num_gpu_blocks_override=300, max_model_len=1000, block_size=8, **{"model.threads": 1, "seed": 4}
    )
    assert (made.kv_blocks, made.max_len, made.block, made.threads, made.seed) == (300, 1000, 8, 1, 4)


def test_a_length_nobody_asked_for_is_lowered_to_what_fits():
    made = plan(num_gpu_blocks_override=20)
    assert made.max_len == 320


# -- what does not fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"num_gpu_blocks_override": 1000, "max_model_len": 2000},
        {"max_model_len": 100},
        {"max_model_len": 2000},
        *({"num_gpu_blocks_override": n} for n in (3, 30, 3000)),
    ],
)
@pytest.mark.parametrize("free", [30 * MIB, 60 * MIB, 64 * MIB, 70 * MIB, 100 * MIB])
def test_the_setting_that_a_refusal_names_fits(free: int, names: dict[str, Any]):
    """Two settings that do not go together may take two hints."""
    names = dict(names)
    for _ in range(2):
        if (fault := refusal(free, names)) is None:
            break
        proposed = hinted(fault)
        if not proposed:
            assert "smaller model" in fault.hint
            assert refusal(free, {"memory.share": 0.98, "num_gpu_blocks_override": 16})
            return
        names |= proposed
    made = plan(free, **names)
    assert made.memory.total <= made.memory.allowed


def refusal(free: int, names: dict[str, Any]) -> Refused | None:
    try:
        plan(free, **names)
    except Refused as fault:
        return fault
    return None


def test_too_small_names_a_share():
    with pytest.raises(
        Refused, match=r"the model needs .* MiB .*memory.share 0.1 of 1.00 GiB free is 102.4 MiB"
    ) as caught:
        plan(settings=BIG | {"vocab_size": 40_000}, **{"memory.share": 0.1})
    (share,) = hinted(caught.value).values()
    assert 0.1 < share < 0.3
    assert plan(settings=BIG | {"vocab_size": 40_000}, **{"memory.share": share}).max_len >= 256


def test_hopeless_names_no_share():
    with pytest.raises(Refused, match="the model needs") as caught:
        plan(free=10 * MIB)
    assert "smaller model" in caught.value.hint


def test_a_length_asked_for_is_refused_with_the_longest_that_fits():
    with pytest.raises(Refused, match="needs 256 KV blocks; 20 are there") as caught:
        plan(num_gpu_blocks_override=20, max_model_len=4096)
    assert hinted(caught.value) == {"max_model_len": 320}
    assert plan(num_gpu_blocks_override=20, max_model_len=320).max_len == 320
    with pytest.raises(Refused):
        plan(num_gpu_blocks_override=20, max_model_len=321)


def test_more_blocks_than_memory_holds():
    with pytest.raises(Refused, match=r"memory.kv_blocks 100000 needs") as caught:
        plan(num_gpu_blocks_override=100_000)
    most = int(re.findall(r"use --memory.kv-blocks (\d+) or less", caught.value.hint)[0])
    assert plan(num_gpu_blocks_override=most).kv_blocks == most
    with pytest.raises(Refused):
        plan(num_gpu_blocks_override=most + 1)


def test_too_few_blocks_for_any_request():
    with pytest.raises(Refused, match="cannot hold a single request") as caught:
        plan(settings=gemma.TINY, num_gpu_blocks_override=1)
    least = int(re.findall(r"use --memory.kv-blocks (\d+) or more", caught.value.hint)[0])
    assert plan(settings=gemma.TINY, num_gpu_blocks_override=least).max_len >= 2
    with pytest.raises(Refused, match="cannot hold a single request"):
        plan(settings=gemma.TINY, num_gpu_blocks_override=least - 1, max_model_len=50)


def test_longer_than_the_model_was_made_for():
    with pytest.raises(Refused, match="more than the 4096 positions"):
        plan(max_model_len=4097)


def test_layers_of_different_kv_shapes_are_refused():
    def build(max_len: int):
        with torch.device("meta"):
            model = models.build(BIG, max_len)
        model.attentions[1].kv_heads = 3
        return model

    with pytest.raises(Refused, match="different KV shapes"):
        resolve(from_names(device="cpu"), BIG, Hardware(1, 1 << 30, 1 << 30), build, None)


# -- windows ---------------------------------------------------------------------------------------------------


def test_windows_hold_no_more_than_they_see():
    layout = lay_out([None, 64, 64])
    assert blocks_for(layout.groups, 16, 16, 32) == 3
    assert blocks_for(layout.groups, 10_000, 16, 32) == 625 + 2 * 7
    made = plan(settings=gemma.TINY)
    assert len(made.layout.groups) == 3
    assert made.kv_tokens == made.kv_blocks * 16 // 3


# -- device, type, attention -------------------------------------------------------------------------------------


def on(device: str) -> Config:
    return from_names(device=device)


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch):
    assert pick_device(on("cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(on("auto")) == torch.device("cpu")
    with pytest.raises(Refused, match="no GPU"):
        pick_device(on("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device(on("auto")) == torch.device("cuda")
    assert pick_device(on("cuda:1")) == torch.device("cuda:1")
    with pytest.raises(Refused, match="no GPU 2; found 2"):
        pick_device(on("cuda:2"))


@pytest.mark.parametrize(
    ("device", "said", "asked", "dtype"),
    [
        ("cpu", {"dtype": "bfloat16"}, "auto", torch.float32),
        ("cpu", {}, "bfloat16", torch.bfloat16),
        ("cuda", {}, "auto", torch.bfloat16),
        ("cuda", {"dtype": "float32"}, "auto", torch.bfloat16),
        ("cuda", {"torch_dtype": "torch.float16"}, "auto", torch.float16),
        ("cuda", {"dtype": "bfloat16"}, "auto", torch.bfloat16),
        ("cuda", {"dtype": "bfloat16"}, "half", torch.float16),
    ],
)
def test_types(device: str, said: dict[str, str], asked: str, dtype: torch.dtype):
    assert pick_dtype(from_names(dtype=asked), said, torch.device(device)) == dtype


def test_attention_back_ends():
    cpu = torch.device("cpu")
    assert pick_attention(from_names(), cpu, 64) == "torch"
    with pytest.raises(UnknownName, match="quantum"):
        pick_attention(from_names(attention_backend="quantum"), cpu, 64)
    with pytest.raises(Refused, match=r"no attention back end fits .triton: "):
        pick_attention(from_names(attention_backend="triton"), cpu, 64)


def test_a_plan_cannot_be_changed():
    made = plan()
    assert replace(made, path=Path("x")).path == Path("x")
    with pytest.raises(AttributeError):
        made.rows = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("settings", "config", "wanted"), [
    ({"quantization_config": {"quant_method": "fp8"}}, {}, "checkpoint"), ({}, {}, "none"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, {}, "none"),
    ({"quantization_config": {"quant_method": "fp8"}}, {"deterministic": True}, "none"),
])  # fmt: skip
def test_on_a_gpu_a_checkpoint_stays_as_it_is_where_there_are_kernels(settings, config, wanted):
    made = from_names(**config)
    found = pick_quantization(made, settings, torch.device("cuda"), torch.bfloat16, None)
    assert found == wanted


@pytest.mark.parametrize(("settings", "config", "wanted"), [
    ({"quant_method": "fp8"}, {}, "int8"), ({"quant_method": "awq", "bits": 4}, {}, "int8"),
    ({"quant_method": "fp8"}, {"dtype": "float32"}, "none"),
    ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4}}}}, {}, "int8"),
    ({"quant_method": "compressed-tensors", "config_groups": {}, "sparsity_config": {"format": "x"}}, {}, "none"),
    (None, {}, "none"),
])  # fmt: skip
def test_on_a_cpu_what_is_rounded_already_is_multiplied_in_8_bits(settings, config, wanted):
    if int8.missing():
        wanted = "none"
    made = from_names(**config)
    cpu = torch.device("cpu")
    assert pick_quantization(made, {"quantization_config": settings}, cpu, torch.float32, None) == wanted
