"""Config, model and hardware into a Plan: every "auto" decided once, memory by arithmetic, nothing loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headrace import attention as backends
from headrace.base import discover
from headrace.base.config import Config
from headrace.base.errors import Refused, UnknownName
from headrace.base.hardware import Hardware
from headrace.checkpoint.quantized import is_rounded, multiplied_packed, online
from headrace.engine.cache import bytes_per_block
from headrace.engine.graphs import launch_bound
from headrace.engine.layout import Layout, lay_out
from headrace.engine.room import Room, weight_bytes, workspace
from headrace.kernels import int8, rules
from headrace.kernels.launch import TENSOR_CORE_TYPES
from headrace.nn.attention import Attention
from headrace.nn.decoder import Decoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGE_GPU = 60 * 2**30
"""Bytes of a GPU from which on a step may have 1,024 rows."""

CPU_KV = 4 * 2**30
"""Bytes of KV cache on a CPU that nobody asked for a share of: memory that other programs may want."""

GUESSES = 8
"""Tokens guessed at once on a CPU; decision 016 has what more of them would bring."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where memory goes, in bytes. `allowed` is the part of `free` that memory.share gives us."""

    free: int
    allowed: int
    weights: int
    workspace: int
    kv_cache: int

    @property
    def total(self) -> int:
        return self.weights + self.workspace + self.kv_cache


@dataclass(frozen=True, slots=True)
class Plan:
    """The resolved, printable truth about a run. Contains no "auto"."""

    model: str
    path: Path | None
    architecture: str
    parameters: int
    dtype: torch.dtype
    quantization: str
    device: torch.device
    attention: str
    threads: int
    max_len: int
    block: int
    kv_blocks: int
    layout: Layout
    tokens: int
    rows: int
    policy: str
    prefix_cache: bool
    overlap: bool
    speculate: int
    graphs: bool
    seed: int
    memory: MemoryPlan
    kv_dtype: torch.dtype
    deterministic: bool

    @property
    def kv_tokens(self) -> int:
        """Tokens the KV cache can hold if no layer has a window."""
        return self.kv_blocks * self.block // len(self.layout.groups)


def pick_device(config: Config) -> torch.device:
    """The device meant by model.device. Raises Refused where it is not there."""
    name = config.model.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise Refused(
            "no GPU is usable from here",
            param="model.device",
            hint="use --device cpu, or see `headrace doctor`",
        )
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise Refused(
            f"there is no GPU {device.index}; found {torch.cuda.device_count()}", param="model.device"
        )
    return device


def pick_dtype(config: Config, settings: dict[str, Any], device: torch.device) -> torch.dtype:
    """float32 on a CPU; on a GPU what the checkpoint says, bfloat16 where it says float32 or nothing."""
    if config.model.dtype != "auto":
        return DTYPES[config.model.dtype]
    if device.type == "cpu":
        return torch.float32
    said = str(settings.get("dtype") or settings.get("torch_dtype"))
    return torch.float16 if said.endswith("float16") and not said.endswith("bfloat16") else torch.bfloat16


def pick_quantization(
    config: Config, settings: dict[str, Any], device: torch.device, dtype: torch.dtype, path: Path | None
) -> str:
    """What weights become while loading; see the knob. Raises Refused where it was asked for and cannot be."""
    asked = config.model.quantization
    if asked == "auto":
        said = settings.get("quantization_config")
        rounded = is_rounded(said) or (
            path is not None and path.suffix == ".gguf" and settings.get("dtype") is None
        )
        fits = device.type == "cpu" and config.model.dtype == "auto" and int8.missing() is None
        kept = device.type == "cuda" and dtype in TENSOR_CORE_TYPES and not config.schedule.deterministic
        if kept and multiplied_packed(said):
            return "checkpoint"
        return "int8" if rounded and fits else "none"
    if asked in ("none", "checkpoint"):
        return asked
    reason = None
    if asked == "int8":
        reason = int8.missing() if device.type == "cpu" else f"8-bit products need a CPU; this is {device}"
        if not reason and dtype != torch.float32:
            reason = f"8-bit products need activations in float32; these are {dtype}"
    elif asked not in online():
        known = ["auto", "none", "checkpoint", *online()]
        raise UnknownName.among("quantization", asked, known, param="model.quantization")
    elif settings.get("quantization_config"):
        reason = f"the checkpoint is quantized already, and not rounded to {asked} again"
    elif config.schedule.deterministic:
        reason = f"products with {asked} weights give a row other bits in other company, against schedule.deterministic"
    if reason:
        raise Refused(reason, param="model.quantization", hint="leave it out, or use --quantization none")
    return asked


def pick_deterministic(config: Config, quantization: str, resumes: bool) -> bool:
    """As asked; if nobody says, where it costs little, of an engine that is resumed: in 8 bits on a CPU (decision 011).

    Even there it may turn out to cost much when the model is loaded; `engine.start` then turns it off.
    """
    asked = config.schedule.deterministic
    return (resumes and quantization == "int8") if asked is None else asked


def pick_kv_dtype(config: Config, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """That of the activations, or 8-bit floats. Raises Refused where a GPU has none."""
    if config.memory.kv_dtype == "auto":
        return dtype
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise Refused(
            "this GPU knows no 8-bit floats; they begin with compute capability 8.9", param="memory.kv_dtype"
        )
    return torch.float8_e4m3fn


def resolve(
    config: Config,
    settings: dict[str, Any],
    hardware: Hardware,
    build: Callable[[int], Decoder],
    path: Path | None,
    resumes: bool = False,
) -> Plan:
    """Decide everything. `settings` is the model's config; `build(max_len)` makes it on the meta device.

    resumes: whether another engine goes on with the requests if this one dies.

    Raises Refused, naming the setting that would fit, where the machine is too small.
    """
    device = pick_device(config)
    dtype = pick_dtype(config, settings, device)
    cpu = device.type == "cpu"
    free = hardware.free_bytes if cpu else torch.cuda.mem_get_info(device)[0]
    share = config.memory.share or (0.5 if cpu else 0.92)
    tokens, rows = _step_sizes(config, device)
    max_len = _longest_wanted(config, settings)
    model = build(max_len)
    layers = model.attentions
    layout = lay_out([layer.window for layer in layers])
    kv_dtype = pick_kv_dtype(config, dtype, device)
    per_block = bytes_per_block(layout, config.memory.block, *_kv_shape(layers), kv_dtype)
    parameters = sum(p.numel() for p in model.parameters())
    quantization = pick_quantization(config, settings, device, dtype, path)
    deterministic = pick_deterministic(config, quantization, resumes)
    weights = weight_bytes(model, dtype, quantization, path)
    overlap, speculate = _look_ahead(config, cpu)
    sampled, most = max(rows, 1 + speculate), tokens + rows  # as Batch has it
    recorded = launch_bound(model, most) if config.schedule.graphs and not cpu else 0
    work = workspace(settings, layers[0].heads * layers[0].head_dim, most + recorded, sampled, dtype)
    if deterministic and not cpu:
        work += _fixed_workspace(layers[0], rows, max_len)
    kept = CPU_KV // per_block if cpu and config.memory.share is None else None
    room = Room(config, free, int(free * share), share, weights, work, per_block, kept)
    max_len, kv_blocks = room.kv_blocks(layout, max_len, rows, tokens)
    attention = pick_attention(config, device, layers[0].head_dim)
    records = _records(attention, dtype, config.memory.block, layers[0])
    if deterministic and not cpu and not records:
        raise _not_fixed(attention, dtype, config.memory.block)
    return Plan(
        model=config.model.path,
        path=path,
        architecture=str(settings["model_type"]),
        parameters=parameters,
        dtype=dtype,
        quantization=quantization,
        device=device,
        attention=attention,
        threads=config.model.threads or hardware.cores,
        max_len=max_len,
        block=config.memory.block,
        kv_blocks=kv_blocks,
        layout=layout,
        tokens=tokens,
        rows=rows,
        policy=config.schedule.policy,
        prefix_cache=config.schedule.prefix_cache,
        overlap=overlap,
        speculate=speculate,
        graphs=config.schedule.graphs and records,
        seed=config.model.seed,
        memory=MemoryPlan(free, int(free * share), weights, work, kv_blocks * per_block),
        kv_dtype=kv_dtype,
        deterministic=deterministic,
    )


def _fixed_workspace(layer: Attention, rows: int, max_len: int) -> int:
    """Bytes that attention of the same bits takes: twice, as what was outgrown stays for graphs that point there."""
    return 8 * rules.paged_fixed_elements(rows, layer.heads, layer.kv_heads, layer.head_dim, max_len)


def _not_fixed(attention: str, dtype: torch.dtype, block: int) -> Refused:
    return Refused(
        f"on a GPU schedule.deterministic needs the triton back end, 16-bit weights and blocks of a multiple of"
        f" 16 tokens; these are {attention}, {dtype} and {block}",
        param="schedule.deterministic",
    )


def _kv_shape(layers: list[Attention]) -> tuple[int, int]:
    """(kv heads, head size), which all layers must share."""
    sizes = {(layer.kv_heads, layer.head_dim) for layer in layers}
    if len(sizes) > 1:
        raise Refused(f"layers with different KV shapes are not supported: {sorted(sizes)}")
    return sizes.pop()


def _records(attention: str, dtype: torch.dtype, block: int, layer: Attention) -> bool:
    """Whether decoding steps of this model may become CUDA graphs."""
    backend = discover.module(backends, attention, "attention back end")
    return backend.records(dtype, block, layer.heads // layer.kv_heads)


def _look_ahead(config: Config, cpu: bool) -> tuple[bool, int]:
    """(a step is planned while one runs, tokens guessed at once). A guess needs the token before it on the host."""
    asked, guesses = config.schedule.overlap, config.schedule.speculate
    if asked == "on" and guesses:
        raise Refused(
            "schedule.overlap plans a step before the tokens of the last one are known, and schedule.speculate guesses"
            " what follows them",
            param="schedule.speculate",
            hint="leave out one of the two",
        )
    overlap = (not cpu and not guesses) if asked == "auto" else asked == "on"
    return overlap, (GUESSES if cpu and not overlap else 0) if guesses is None else guesses


def _step_sizes(config: Config, device: torch.device) -> tuple[int, int]:
    """(tokens, rows) of a step at the most. A large GPU has the memory for many rows, and gains by them."""
    if device.type == "cpu":
        tokens, rows = 512, 64
    else:
        large = torch.cuda.get_device_properties(device).total_memory >= LARGE_GPU
        tokens, rows = 8192, 1024 if large else 256
    tokens = config.schedule.tokens or tokens
    return tokens, min(config.schedule.rows or rows, tokens)


def _longest_wanted(config: Config, settings: dict[str, Any]) -> int:
    made_for = int(settings["max_position_embeddings"])
    max_len = config.model.max_len or made_for
    if max_len > made_for:
        raise Refused(
            f"model.max_len {max_len} is more than the {made_for} positions this model was made for",
            param="model.max_len",
            hint=f"use {made_for} or less, or a checkpoint with rope scaling",
        )
    return max_len


def pick_attention(config: Config, device: torch.device, head_dim: int) -> str:
    """The first back end that fits, or the one asked for. Raises Refused with the reason it does not fit."""
    name = config.model.attention
    wanted = ("triton", "torch") if name == "auto" else (name,)
    reasons = []
    for name in wanted:
        reason = discover.module(backends, name, "attention back end").fits(device, head_dim)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise Refused(f"no attention back end fits ({'; '.join(reasons)})", param="model.attention")
