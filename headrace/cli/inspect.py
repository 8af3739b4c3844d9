"""Shows what would be run and where memory would go, before anything is loaded."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from headrace.base.words import dtype_name, size
from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli._print import sheet, table, write_json

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
    config = engine.of(path).config
    with Console(stderr=True).status("starting"):
        from headrace.engine.start import look

    plan = look(config).plan
    if json:
        write_json(facts(plan))
        return
    console = Console()
    for shown in (_settings(plan), _memory(plan), _requests(plan)):
        console.print(shown)


def facts(plan: "Plan") -> dict[str, Any]:
    """The plan in plain values; sizes in bytes."""
    memory = plan.memory
    return {
        "model": plan.model,
        "path": str(plan.path),
        "architecture": plan.architecture,
        "parameters": plan.parameters,
        "dtype": dtype_name(plan.dtype),
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
            "graphs": plan.graphs,
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
            "dtype": dtype_name(plan.kv_dtype),
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
    said = facts(plan)
    rows = [(name, str(said[name])) for name in ("model", "path", "architecture")]
    rows.append(("parameters", f"{plan.parameters / 1e6:,.1f} million"))
    rows += [(name, str(said[name])) for name in ("dtype", "quantization", "device", "attention", "threads")]
    rows += [
        (
            "step",
            f"at most {plan.rows} requests and {plan.tokens} tokens of prompts, in order of {plan.policy}",
        ),
        ("prefix cache", "on" if plan.prefix_cache else "off"),
        ("plans ahead", "yes" if plan.overlap else "no"),
        ("guesses", f"up to {plan.speculate} tokens ahead" if plan.speculate else "none"),
    ]
    if plan.device.type == "cuda":
        rows.append(("CUDA graphs", "yes" if plan.graphs else "no"))
    if plan.deterministic:
        rows.append(("deterministic", "logits do not depend on what shares a step"))
    for window, count in groups(plan):
        seen = "all that came before" if window is None else f"the last {window} tokens"
        rows.append(("layer group", f"{count} layers that see {seen}"))
    return sheet("plan", rows)


def _memory(plan: "Plan") -> Table:
    memory = plan.memory
    rows = (
        ("weights", memory.weights),
        ("workspace of a step", memory.workspace),
        (f"KV cache, {plan.kv_blocks} blocks of {plan.block} tokens{_kept(plan)}", memory.kv_cache),
        ("left over of what may be used", memory.allowed - memory.total),
        ("may be used (memory.share)", memory.allowed),
        ("free now", memory.free),
    )
    cells = [(name, size(part), f"{part / max(memory.free, 1):.1%}") for name, part in rows]
    shown = table(("what", "size", "of what is free"), cells, title="memory")
    shown.rows[3].end_section = True
    return shown


def _kept(plan: "Plan") -> str:
    return "" if plan.kv_dtype == plan.dtype else f" in {dtype_name(plan.kv_dtype)}"


def _requests(plan: "Plan") -> Table:
    rows = [
        (f"{length}" + (" (longest)" if length == plan.max_len else ""), str(count))
        for length, count in at_once(plan)
    ]
    caption = f"the KV cache holds {plan.kv_tokens} tokens"
    return table(("tokens, prompt and answer", "at once"), rows, words=(), title="requests", caption=caption)
