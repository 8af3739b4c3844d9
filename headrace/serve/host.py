"""The engine process: `python -m headrace.serve.host`, started and watched by supervisor.py."""

import sys

from headrace.kernels import ahead

if __name__ == "__main__":  # whoever may have to compile kernels imports torch while this process does
    ahead.begin_early([word for word in sys.argv if word.startswith("--config")])

import logging
from dataclasses import asdict
from pathlib import Path
from time import monotonic, time

from headrace.base.config import Config
from headrace.base.errors import Broken
from headrace.base.words import dtype_name
from headrace.checkpoint.gguf import Gguf
from headrace.checkpoint.hub import find
from headrace.engine.engine import Engine
from headrace.engine.request import Event, Request, SamplingParams
from headrace.engine.start import Started, start
from headrace.engine.tally import Counts, Tally
from headrace.serve.entry import run
from headrace.serve.loop import Host
from headrace.serve.wire import Facts, Stats
from headrace.serve.words import write_words

log = logging.getLogger(__name__)

PROMPT = 100
"""Tokens of the first prompt on a GPU."""


class Hosted:
    """An Engine as the loop wants it."""

    def __init__(self, engine: Engine):
        self.engine, self.add, self.cancel = engine, engine.add, engine.cancel
        self.tally = Tally()
        self._tokens = 0  # of the latest step

    @property
    def busy(self) -> bool:
        return self.engine.busy

    def step(self) -> list[Event]:
        events = self.engine.step()
        if self.engine.fresh:
            self._tokens = self.tally.count([(row.start, row.stop) for row in self.engine.latest])
        return events

    def rows(self) -> list[tuple[str, int, int]]:
        return [(row.seq.request.id, row.start, row.stop) for row in self.engine.latest]

    def report(self, stats: Stats) -> None:
        scheduler = self.engine.scheduler
        counts, pool = scheduler.counts, scheduler.pool
        stats.running, stats.waiting = len(scheduler.running), len(scheduler.waiting)
        stats.kv_used = 1 - pool.free / pool.count
        stats.prompt_tokens, stats.cached_tokens = counts.prompt_tokens, counts.cached_tokens
        stats.evictions, stats.recomputed_tokens = counts.evictions, counts.recomputed_tokens
        stats.drafts, stats.drafted_tokens = counts.drafts, counts.drafted_tokens
        stats.accepted_tokens, stats.accepted_at = counts.accepted_tokens, counts.accepted_at
        stats.step_rows, stats.step_tokens = len(self.engine.latest), self._tokens
        stats.faults = self.engine.faults
        stats.rows_total, stats.sizes = self.tally.rows, self.tally.sizes


def warm_up(engine: Engine) -> float:
    """Make a few steps, so that the first client does not wait for what happens once; seconds of the last one."""
    if (tokens := min(4, engine.plan.max_len - 1)) < 1:
        return 0.0
    # On a GPU as long as prompts are, whose kernels are others than those for one token.
    prompt = (0,) * (min(PROMPT, engine.plan.max_len - tokens) if engine.plan.device.type == "cuda" else 1)
    engine.add(Request(id="", prompt=prompt, params=SamplingParams(temperature=0), max_tokens=tokens))
    took = 0.0
    while engine.busy:
        began = monotonic()
        if any(event.finish == "error" for event in engine.step()):
            raise Broken("the model fails at its first step; the log says why")
        took = monotonic() - began
    engine.scheduler.counts = Counts()
    return took


def facts_of(started: Started, served: tuple[str, ...], tokenizer: str | None, seconds: float) -> Facts:
    """What the fronts are told."""
    plan, memory = started.plan, started.plan.memory
    kept = "" if plan.kv_dtype == plan.dtype else f" in {dtype_name(plan.kv_dtype)}"
    rows = {
        "model": plan.model,
        "architecture": plan.architecture,
        "parameters": f"{plan.parameters:,}",
        "device": str(plan.device),
        "dtype": dtype_name(plan.dtype),
        "quantization": plan.quantization,
        "attention": plan.attention,
        "context": f"{plan.max_len} tokens",
        "step": f"{plan.rows} requests, {plan.tokens} tokens of prompts",
        "KV cache": f"{plan.kv_blocks} blocks of {plan.block} tokens{kept}",
        "policy": plan.policy,
        "prefix cache": "on" if plan.prefix_cache else "off",
        "overlap": "on" if plan.overlap else "off",
        "guesses": f"up to {plan.speculate} tokens ahead" if plan.speculate else "none",
        "same bits": "whatever shares a step" if plan.deterministic else "not promised",
    }
    if plan.device.type == "cpu":
        rows["threads"] = str(plan.threads)
    return Facts(
        model=plan.model,
        served=served,
        path=str(plan.path),
        created=int(time()),
        max_len=plan.max_len,
        vocab=started.intake.vocab,
        eos_ids=started.intake.eos_ids,
        defaults=started.defaults,
        kv_blocks=plan.kv_blocks,
        block=plan.block,
        rows=plan.rows,
        tokens=plan.tokens,
        kv_tokens=plan.kv_tokens,
        plan="\n".join(f"{name:<15}{value}" for name, value in rows.items()),
        memory=asdict(memory),
        device=plan.device.type,
        dtype=rows["dtype"],
        kv_dtype=dtype_name(plan.kv_dtype),
        tokenizer=tokenizer,
        template=started.intake.tokenizer.template_source if started.intake.tokenizer else None,
        step_seconds=seconds,
    )


def tell_tokenizer(config: Config, folder: Path) -> str | None:
    """Where the fronts find the tokenizer; None where the model may be run without one."""
    source = find(config.model.tokenizer or config.model.path)
    if source.suffix == ".gguf":
        return write_words(Gguf(source).metadata, folder)
    has_one = any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    return str(source) if has_one else None


def build(config: Config, served: tuple[str, ...], host: Host, folder: Path) -> tuple[Hosted, Facts]:
    """The engine that a Config asks for, telling the fronts how far it is."""
    host.say("looking for the model", 0.0)
    tokenizer = tell_tokenizer(config, folder)
    host.say("loading the model", 0.0, tokenizer)
    said = monotonic()

    def notify(doing: str, part: float) -> None:
        nonlocal said
        if monotonic() - said > 0.1:
            said = monotonic()
            host.say(doing, part)

    started = start(config, notify, resumes=True)
    host.say("warming up", 1.0)
    seconds = warm_up(started.engine)
    return Hosted(started.engine), facts_of(started, served, tokenizer, seconds)


if __name__ == "__main__":
    run(sys.argv[1:], build)
