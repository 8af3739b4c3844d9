"""From a Config to a running engine: find the files, decide the plan, load the weights, build the parts."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headrace import attention as backends
from headrace import models
from headrace.base import discover
from headrace.base.config import Config
from headrace.base.errors import Refused
from headrace.base.hardware import probe
from headrace.base.memory import LOADING, RUNNING, give_back, map_from
from headrace.base.text_file import read_text
from headrace.checkpoint import sampling
from headrace.checkpoint.config import read_config, read_tokenizer
from headrace.checkpoint.gguf import Gguf, opened
from headrace.checkpoint.hub import find
from headrace.checkpoint.load import dummy, load, load_cache_scales, open_source
from headrace.checkpoint.quantized import RandomSource, RoundedSource, load_packed, online
from headrace.engine.batch import Batch
from headrace.engine.cache import KVCache
from headrace.engine.engine import Engine
from headrace.engine.graphs import Graphs
from headrace.engine.intake import Intake
from headrace.engine.pace import Pace
from headrace.engine.rehearsal import Kernels
from headrace.engine.request import SamplingParams
from headrace.engine.resolve import Plan, resolve
from headrace.engine.runner import Runner
from headrace.engine.sampler import Sampler
from headrace.engine.script import Script, unfit
from headrace.kernels.ahead import begin_early
from headrace.nn.decoder import Decoder
from headrace.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Notify = Callable[[str, float], None]
"""Told what is being done, and which part of it is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model's files and what they say, before anything is loaded."""

    path: Path
    checkpoint: Path | Gguf
    settings: dict[str, Any]
    plan: Plan


@dataclass(frozen=True, slots=True)
class Started:
    engine: Engine
    plan: Plan
    intake: Intake
    defaults: SamplingParams


def look(config: Config, resumes: bool = False) -> Found:
    """Find the model and decide the plan; loads no weights. Raises Refused where the machine is too small."""
    path = find(config.model.path)
    checkpoint = opened(path)
    settings = read_config(checkpoint)

    def build(max_len: int) -> Decoder:
        with torch.device("meta"):
            return models.build(settings, max_len)

    return Found(path, checkpoint, settings, resolve(config, settings, probe(), build, path, resumes))


def start(config: Config, notify: Notify | None = None, resumes: bool = False) -> Started:
    """Load a model and build the engine around it.

    resumes: whether another engine goes on with the requests if this one dies
    """
    if config.model.device != "cpu":
        begin_early()
    found = look(config, resumes)
    plan = found.plan
    if plan.device.type == "cpu":
        torch.set_num_threads(plan.threads)
        map_from(LOADING)
    kernels = Kernels(found.settings, plan)
    tokenizer = find_tokenizer(config, found.checkpoint)
    model, fill = allocate(config, found, notify)
    filled = plan.deterministic or not kernels.ours  # only what is there can be made deterministic
    if filled:
        fill()
    plan, runner = _runner(model, plan, config.schedule.deterministic is not None)
    if kernels.ours and runner.graphs is not None:
        kernels.prepare(runner.graphs, (lambda: None) if filled else fill, notify)
    intake = Intake(
        tokenizer, plan.max_len, int(found.settings["vocab_size"]), _eos_ids(found.settings, tokenizer)
    )
    engine = Engine(plan, runner, intake.compiler)
    if plan.device.type == "cpu":
        map_from(RUNNING)
    return Started(engine, plan, intake, recommended(found.checkpoint, config.model.path))


def load_model(config: Config, found: Found, notify: Notify | None = None) -> Decoder:
    """The model on its device in its dtype, weights read straight into place, or random ones."""
    model, fill = allocate(config, found, notify)
    fill()
    if found.plan.deterministic:
        model.set_deterministic()
    return model


def allocate(
    config: Config, found: Found, notify: Notify | None = None
) -> tuple[Decoder, Callable[[], None]]:  # fmt: skip
    """(the model, its memory uninitialized but for what is quantized; what fills it, to be called once)."""
    plan = found.plan
    with torch.device("meta"):
        model = models.build(found.settings, plan.max_len)
    prepacks = plan.quantization == "int8"
    scheme = online().get(plan.quantization) if not prepacks else None
    said = notify and (lambda done, total: notify("loading weights", done / total))
    source = None if config.model.dummy_weights else open_source(found.checkpoint)
    weights = RandomSource(model, config.model.seed) if source is None else source
    if scheme:
        weights = RoundedSource(weights, scheme, plan.dtype, plan.device)
    if scheme or (source is not None and plan.quantization == "checkpoint"):
        load_packed(model, weights, plan.dtype, plan.device, said)
    model.allocate(plan.dtype, plan.device, prepacks and not config.model.dummy_weights)
    model.eval()

    def fill() -> None:
        nonlocal source
        if source is None:
            dummy(model, config.model.seed)
        else:
            load(model, source, said)
            if plan.kv_dtype != plan.dtype:
                load_cache_scales(model.named_attentions(), source)
        source = None  # pages of a file that is mapped count as ours
        if prepacks:
            model.prepack()
            give_back()

    return model, fill


def find_tokenizer(config: Config, path: Path | Gguf) -> Tokenizer | None:
    """The tokenizer asked for or the model's own; None for dummy weights that come without one."""
    chosen = find(config.model.tokenizer) if config.model.tokenizer else path
    try:
        tokenizer = read_tokenizer(chosen)
    except Refused as fault:
        if config.model.tokenizer or not config.model.dummy_weights:
            raise
        log.info("no tokenizer, token ids only: %s", fault.message)
        return None
    if config.model.chat_template is not None:
        tokenizer.template_source = _template_source(config.model.chat_template)
    return tokenizer


def recommended(checkpoint: Path | Gguf, name: str = "") -> SamplingParams:
    """Sampling defaults, as `checkpoint.sampling` finds them, but for values that no request could have."""
    values: dict[str, Any] = {}
    for field, value in sampling.recommended(checkpoint, name).items():
        try:
            SamplingParams(**{field: value})
        except Refused as fault:
            log.warning("a recommendation of the model's makers is left out: %s", fault.message)
        else:
            values[field] = value
    return SamplingParams(**values)


def _template_source(given: str) -> str:
    if "{" in given:
        return given
    hint = "give the path of a file with a Jinja template, or the template itself"
    return read_text(given, "model.chat_template", hint)


def _eos_ids(settings: dict[str, Any], tokenizer: Tokenizer | None) -> frozenset[int]:
    own = tokenizer.eos_ids if tokenizer is not None else frozenset[int]()
    return own | frozenset(settings.get("eos_token_id") or ())


def _runner(model: Decoder, plan: Plan, insisted: bool) -> tuple[Plan, Runner]:
    """The plan as `_settled`, and its runner."""
    layers = model.attentions
    for layer, place in zip(layers, plan.layout.places, strict=True):
        layer.group, layer.cache_index = place
    plan, unscripted = _settled(model, plan, insisted)
    cache = KVCache(
        plan.layout,
        plan.kv_blocks,
        plan.block,
        layers[0].kv_heads,
        layers[0].head_dim,
        plan.kv_dtype,
        plan.device,
    )
    backend = discover.module(backends, plan.attention, "attention back end").Backend(plan.deterministic)
    batch = Batch(plan.rows, plan.tokens, -(-plan.max_len // plan.block), cache, backend)
    sampler = Sampler(plan.rows, model.shape.vocab, plan.device, plan.seed, plan.deterministic)
    graphs = Graphs(model, batch, sampler, plan.rows) if plan.device.type == "cuda" and plan.graphs else None
    script = Script(model, batch) if unscripted is None else None
    pace = Pace(plan.threads) if script is not None and plan.threads > 1 else None
    return plan, Runner(model, batch, sampler, graphs, script, pace)


def _settled(model: Decoder, plan: Plan, insisted: bool) -> tuple[Plan, str | None]:
    """(plan, why there is no script). Without the same bits where nobody insists on them and they would cost much."""
    if plan.deterministic:
        try:
            model.set_deterministic()
            reason = unfit(model, plan)
        except Refused as fault:
            if insisted:
                raise
            reason = fault.message
        if insisted or reason is None:
            return plan, reason
        log.warning("greedy text is not kept if the engine is restarted, which would cost much: %s", reason)
        model.set_deterministic(False)
        plan = replace(plan, deterministic=False)
    return plan, unfit(model, plan)
