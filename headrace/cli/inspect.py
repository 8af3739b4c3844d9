"""Shows what would be run and where memory would go, before anything is loaded."""

import json as text_of
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from headrace.base.errors import Refused
from headrace.cli._knobs import Engine, EngineFlags

if TYPE_CHECKING:
    from headrace.engine.resolve import Plan

LENGTHS = (512, 2048, 8192, 32768)
"""Tokens, prompt and answer together, of the requests whose number is shown."""


def run(
    path: Annotated[str | None, Parameter(name="MODEL")] = None,
    /,
    *,
    json: Annotated[bool, Parameter(negative=())] = False,
    engine: EngineFlags = Engine(),
) -> None:
    """Show the resolved plan and where memory goes, before anything is loaded.

    What does not fit is refused here as it would be when the model is run, with the setting that would fit.

    Parameters
    ----------
    path
        the model, as for --model
    json
        print JSON instead of tables
    """
    config = engine.config
    if path is not None:
        if config.model.path not in (type(config.model)().path, path):
            raise Refused(f"two models are given: {path} and {config.model.path}", hint="leave --model out")
        config = replace(config, model=replace(config.model, path=path))
    with Console(stderr=True).status("starting"):
        from headrace.engine.start import look

    plan = look(config).plan
    if json:
        text_of.dump(facts(plan), sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    console = Console()
    for table in (_settings(plan), _memory(plan), _requests(plan)):
        console.print(table)


def facts(plan: "Plan") -> dict[str, Any]:
    """The plan in plain values; sizes in bytes."""
    memory = plan.memory
    return {
        "model": plan.model,
        "path": str(plan.path),
        "architecture": plan.architecture,
        "parameters": plan.parameters,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "quantization": plan.quantization,
        "device": str(plan.device),
        "attention": plan.attention,
        "threads": plan.threads,
        "schedule": {
            "tokens": plan.tokens,
            "rows": plan.rows,
            "policy": plan.policy,
            "prefix_cache": plan.prefix_cache,
            "overlap": plan.overlap,
            "speculate": plan.speculate,
            "deterministic": plan.deterministic,
        },
        "seed": plan.seed,
        "memory": {
            "free": memory.free,
            "allowed": memory.allowed,
            "weights": memory.weights,
            "workspace": memory.workspace,
            "kv_cache": memory.kv_cache,
            "left_over": memory.allowed - memory.total,
        },
        "kv": {
            "dtype": str(plan.kv_dtype).removeprefix("torch."),
            "block": plan.block,
            "blocks": plan.kv_blocks,
            "tokens": plan.kv_tokens,
            "longest_request": plan.max_len,
            "layer_groups": [{"layers": count, "window": window} for window, count in groups(plan)],
        },
        "at_once": {str(length): count for length, count in at_once(plan)},
    }


def groups(plan: "Plan") -> list[tuple[int | None, int]]:
    """(window, layers) of each layer group; layers that are padding are not counted."""
    return [
        (group.window, sum(place.group == n for place in plan.layout.places))
        for n, group in enumerate(plan.layout.groups)
    ]


def at_once(plan: "Plan") -> list[tuple[int, int]]:
    """(length, how many requests of that length run at once): the KV cache and the rows of a step are the limits."""
    from headrace.engine.blocks import blocks_for

    lengths = sorted({length for length in LENGTHS if length < plan.max_len} | {plan.max_len})
    each = [blocks_for(plan.layout.groups, length, plan.block, plan.tokens) for length in lengths]
    return [
        (length, min(plan.rows, plan.kv_blocks // need)) for length, need in zip(lengths, each, strict=True)
    ]


def _settings(plan: "Plan") -> Table:
    table = Table(title="plan", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    said = facts(plan)
    for name in ("model", "path", "architecture"):
        table.add_row(name, str(said[name]))
    table.add_row("parameters", f"{plan.parameters / 1e6:,.1f} million")
    for name in ("dtype", "quantization", "device", "attention", "threads"):
        table.add_row(name, str(said[name]))
    table.add_row("step", f"at most {plan.tokens} tokens of {plan.rows} requests, in order of {plan.policy}")
    table.add_row("prefix cache", "on" if plan.prefix_cache else "off")
    table.add_row("plans ahead", "yes" if plan.overlap else "no")
    table.add_row("guesses", f"up to {plan.speculate} tokens ahead" if plan.speculate else "none")
    if plan.deterministic:
        table.add_row("deterministic", "logits do not depend on what shares a step")
    for window, count in groups(plan):
        seen = "all that came before" if window is None else f"the last {window} tokens"
        table.add_row("layer group", f"{count} layers that see {seen}")
    return table


def _memory(plan: "Plan") -> Table:
    memory = plan.memory
    table = Table(title="memory")
    for heading in ("what", "size", "of what is free"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    rows = (
        ("weights", memory.weights),
        ("workspace of a step", memory.workspace),
        (f"KV cache, {plan.kv_blocks} blocks of {plan.block} tokens{_kept(plan)}", memory.kv_cache),
        ("left over of what may be used", memory.allowed - memory.total),
        ("may be used (memory.share)", memory.allowed),
        ("free now", memory.free),
    )
    for n, (name, size) in enumerate(rows):
        table.add_row(name, _size(size), f"{size / max(memory.free, 1):.1%}", end_section=n == 3)
    return table


def _kept(plan: "Plan") -> str:
    return "" if plan.kv_dtype == plan.dtype else f" in {str(plan.kv_dtype).removeprefix('torch.')}"


def _requests(plan: "Plan") -> Table:
    table = Table(title="requests")
    table.add_column("tokens, prompt and answer", justify="right")
    table.add_column("at once", justify="right")
    for length, count in at_once(plan):
        table.add_row(f"{length}" + (" (longest)" if length == plan.max_len else ""), str(count))
    table.caption = f"the KV cache holds {plan.kv_tokens} tokens"
    return table


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if abs(size) >= 2**30 else f"{size / 2**20:.1f} MiB"
