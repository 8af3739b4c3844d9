"""Memory is divided as the engine divides it: as it did on a real H200, and as its own plan does on a pretended one."""

from typing import Any

import pytest
import torch

from headrace import models
from headrace.base.config import from_names
from headrace.base.hardware import Hardware
from headrace.engine.resolve import Plan, resolve
from headrace.plan.known import KNOWN
from headrace.plan.memory import BLOCK
from tests.plan.anchors import ALLOTTED, SAID
from tests.plan.options import option

GIB = 2**30


@pytest.mark.parametrize(("shape", "max_len"), ALLOTTED)
def test_as_allotted_on_an_h200(shape: str, max_len: int):
    weights, workspace, kv_tokens = ALLOTTED[shape, max_len]
    made = option(shape, max_len=max_len).memory
    assert (made.weights, made.workspace) == (weights, workspace)
    assert made.kv_tokens == kv_tokens
    assert made.kv_tokens == pytest.approx(SAID.get((shape, max_len), kv_tokens), rel=0.001)


def engines_plan(shape: str, total: int, free: int, monkeypatch: pytest.MonkeyPatch, **names: Any) -> Plan:
    """What the engine would decide on a GPU of that memory, without one."""

    class Properties:
        total_memory = total

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    settings = KNOWN[shape] | ({"rms_norm_eps": 1e-5} if "rms_norm_eps" not in KNOWN[shape] else {})

    def build(max_len: int):
        with torch.device("meta"):
            return models.build(settings, max_len)

    config = from_names(device="cuda", enforce_eager=True, **{"model.attention": "torch"}, **names)
    return resolve(config, settings, Hardware(8, 64 * GIB, 64 * GIB), build, None)


@pytest.mark.parametrize(
    "shape", ["llama-3.1-8b", "qwen3-0.6b", "llama-3.2-1b", "gemma-3-27b", "mistral-7b-v0.1"]
)
@pytest.mark.parametrize("gpu", ["h200", "h100", "l4"])
def test_the_engines_own_plan(shape: str, gpu: str, monkeypatch: pytest.MonkeyPatch):
    made = option(shape, gpu).memory
    if made.longest < 256:
        pytest.skip(f"{shape} does not fit on a {gpu}")
    theirs = engines_plan(shape, made.total, made.total - made.context, monkeypatch)
    assert made.weights == theirs.memory.weights
    assert made.workspace == theirs.memory.workspace
    assert made.allowed == theirs.memory.allowed
    assert (made.kv_blocks, made.kv_tokens) == (theirs.kv_blocks, theirs.kv_tokens)
    assert (made.longest, made.rows, made.tokens) == (theirs.max_len, theirs.rows, theirs.tokens)


def test_it_adds_up_and_does_not_overlap():
    made = option().memory
    used = made.weights + made.workspace + made.kv_blocks * made.per_block
    assert used <= made.allowed < used + made.per_block
    assert made.allowed + made.context < made.total


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_devices_divide_weights_and_heads(gpus: int):
    one, many = (option("llama-3.1-70b", gpus=n, scheme="fp8").memory for n in (1, gpus))
    table = 128 * 131072 * 4
    small = 81 * 8192 * 2 + 80 * 8192 * 2  # two norms of each layer and the last one, in each device
    assert (many.weights - table - small) * gpus == pytest.approx(one.weights - table - small, rel=1e-6)
    assert many.per_block * gpus == one.per_block


def test_more_devices_than_kv_heads_copy_them_and_a_latent_is_never_divided():
    eight, sixteen = (option("llama-3.1-70b", gpus=n).memory for n in (8, 16))
    assert eight.per_block == sixteen.per_block
    alone, eight = (option("deepseek-v3", gpus=n).memory for n in (1, 8))
    assert alone.per_block == eight.per_block == BLOCK * 61 * (512 + 64) * 2


def test_the_cache_in_eight_bits_holds_twice_as_much():
    wide, narrow = option().memory, option(kv="fp8").memory
    assert narrow.kv_blocks in (2 * wide.kv_blocks, 2 * wide.kv_blocks + 1)


@pytest.mark.parametrize(
    ("scheme", "bits"), [("bf16", 16), ("fp8", 8), ("w4a16", 4.125), ("nvfp4", 4.5), ("q4_1", 5.0)]
)
def test_weights_by_scheme(scheme: str, bits: float):
    """llama-3.1-8b: matrices of the layers 6,979,321,856; embedding and head 1,050,673,152; norms 266,240."""
    head = bits if scheme.startswith("q") else 16
    bytes_by_hand = 6_979_321_856 * bits / 8 + 1_050_673_152 * head / 8 + 266_240 * 2 + 128 * 1000 * 4
    assert option(scheme=scheme, max_len=1000).memory.weights == int(bytes_by_hand)


def test_mxfp4_is_for_experts_only():
    """gpt-oss-20b: 24 layers of 32 experts of 24,883,200; all else, 20,914,757,184 in all, in 16 bits."""
    experts = 24 * 32 * 24_883_200
    by_hand = experts * 4.25 / 8 + (20_914_757_184 - experts) * 2 + 64 * 131072 * 4
    assert option("gpt-oss-20b", scheme="mxfp4").memory.weights == int(by_hand)


def test_windows_hold_no_more_than_they_see():
    made = option("mistral-7b-v0.1").memory
    window = -(-(4096 + made.tokens) // BLOCK) + 1
    assert made.each(32768) == window * made.per_block
    assert made.each(1600) == 100 * made.per_block


def test_a_state_costs_the_same_however_long_the_request():
    made = option("qwen3-next-80b-a3b", gpus=2).memory
    blocks = {n: made.each(n) - made.state for n in (16, 1600)}
    assert blocks[1600] == 100 * blocks[16]
    assert made.state == 36 * (4 * 32 * 128 * 128 + 2 * 8192 * 3) // 2


@pytest.mark.parametrize("length", [100, 5000])
@pytest.mark.parametrize("shared", [0, 64])
def test_requests_at_once_fit_and_one_more_does_not(length: int, shared: int):
    made = option("llama-3.1-70b", gpus=2).memory
    count = made.requests(length, shared)
    assert 0 < count <= made.rows
    common = shared // BLOCK * made.per_block
    need = made.each(length - shared)
    assert common + count * need <= made.pool
    assert count == made.rows or common + (count + 1) * need > made.kv_blocks * made.per_block


def test_what_does_not_fit_holds_nothing():
    made = option("llama-3.1-405b").memory
    assert made.pool < 0
    assert (made.longest, made.kv_blocks, made.kv_tokens, made.requests(100)) == (0, 0, 0, 0)


def test_a_length_nobody_can_hold_is_lowered():
    made = option("llama-3.1-8b", "l4").memory
    assert made.longest < 131072
    assert made.each(made.longest) <= made.pool < made.each(made.longest + BLOCK)


def test_vllm_takes_its_share_of_all():
    made = option(engine="vllm").memory
    assert made.allowed == int(made.total * 0.90) - made.context - made.graphs


def test_a_cpu_is_shared():
    made = option("qwen3-0.6b", "cpu", scheme="fp32").memory
    assert made.context == 0
    assert made.pool == 4 * GIB
