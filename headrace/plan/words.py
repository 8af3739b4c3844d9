"""A plan in words and rows: what the terminal, the page and the JSON all say."""

from typing import Any

from headrace.base.words import size
from headrace.plan.advice import Advice
from headrace.plan.anatomy import Anatomy
from headrace.plan.forecast import Forecast
from headrace.plan.memory import Memory
from headrace.plan.options import Option
from headrace.plan.search import Choice

ADVICE_HEADS = ("throughput", "per token", "first token", "cost")
CHOICE_HEADS = ("configuration", "$/hour", "$/M tok", "req/s", "rows", "TTFT", "TPOT")
LENGTHS = (512, 2048, 8192, 32768, 131072)


def count(amount: float) -> str:
    """A number of parameters or tokens for people."""
    for unit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if amount >= unit:
            return f"{amount / unit:,.2f} {name}"
    return f"{amount:,.0f}"


def active(model: Anatomy) -> str:
    """To be said after the number of parameters, where a token meets only some."""
    return "" if model.active == model.parameters else f", {count(model.active)} of them for a token"


def seconds(amount: float) -> str:
    """A time for people, to three digits."""
    if amount >= 100:
        return f"{amount:,.0f} s"
    return f"{amount:.3g} s" if amount >= 1 else f"{amount * 1000:.3g} ms"


def memory_rows(made: Memory) -> list[tuple[str, float, str]]:
    """Where each device's memory goes, as (name, bytes, what is said of it); adds up to all of it."""
    pool = max(0, made.pool)
    used = made.kv_blocks * made.per_block if made.layout and not made.state else pool
    rows = [
        ("weights", made.weights, "with the tables of rotations"),
        (
            "workspace",
            made.workspace,
            f"activations of {made.tokens + made.rows * made.beside:,} tokens, logits of {made.rows:,} rows",
        ),
        ("KV cache" + (" and states" if made.state else ""), used, _kv_words(made)),
        ("device context", made.context, "what the driver takes"),
        ("recorded steps", made.graphs, "CUDA graphs, roughly"),
    ]
    rest = made.total - sum(amount for _, amount, _ in rows)
    return [*rows, ("left free", rest, "")]


def _kv_words(made: Memory) -> str:
    if not made.layout:
        return f"{size(made.state)} per request, however long"
    words = f"{made.kv_blocks:,} blocks of 16 tokens: {made.kv_tokens:,} tokens"
    return words + (f", and {size(made.state)} of state per request" if made.state else "")


def at_once(made: Memory) -> list[tuple[int, int]]:
    """(length, how many requests of that length run at once)."""
    lengths = sorted({length for length in LENGTHS if length < made.longest} | {made.longest})
    return [(length, made.requests(length)) for length in lengths if length]


def verdict(option: Option, made: Forecast | None) -> str:
    """One sentence: does it fit, and what stands in the way."""
    room = option.memory
    if made is not None:
        return f"fits: {made.rows} of {option.work.concurrency} requests run at once"
    if room.pool <= 0:
        lacks = size(-room.pool)
        return f"does not fit: weights and workspace need {lacks} more than a device gives"
    return (
        f"does not fit: a request of {option.work.length:,} tokens; the longest that the cache holds has"
        f" {room.longest:,}"
    )


def limited(made: Forecast) -> str:
    """What limits it, in words."""
    top = sorted(made.shares.items(), key=lambda item: -item[1])[:3]
    said = ", ".join(f"{name} {share:.0%}" for name, share in top if share >= 0.01)
    return f"{made.kind}: {said}"


def _ratio(found: float | None, instead: str) -> str:
    """What a change makes of a number; the number itself where there is nothing to compare it with."""
    return f"{found:.2f} x" if found is not None else instead


def advice_cells(found: Advice) -> tuple[str, ...]:
    """What a change makes of the numbers under ADVICE_HEADS."""
    then = found.forecast
    return (
        _ratio(found.throughput, f"{then.output_per_s:,.0f} tok/s"),
        _ratio(found.tpot, seconds(then.tpot)),
        _ratio(found.ttft, seconds(then.ttft)),
        _ratio(found.cost, f"${then.cost:,.3f}"),
    )


def choice_cells(found: Choice) -> tuple[str, ...]:
    """A configuration, with the numbers under CHOICE_HEADS."""
    name, made = found.option.name, found.forecast
    return (
        f"{found.replicas} x ({name})" if found.replicas > 1 else name,
        f"${found.per_hour:,.2f}",
        f"${found.cost:,.3f}",
        f"{found.qps:,.2f}",
        f"{found.option.work.concurrency:,}",
        seconds(made.ttft),
        seconds(made.tpot),
    )


def facts(option: Option) -> dict[str, Any]:
    """The model and the devices in plain values."""
    model = option.anatomy
    return {
        "model": model.name,
        "type": model.kind,
        "parameters": model.parameters,
        "active_parameters": model.active,
        "engine": option.engine.name,
        "gpu": option.gpu.name,
        "gpus": option.gpus,
        "scheme": option.scheme,
        "kv_bits": option.setup.kv_bits,
        "kv_bytes_per_token": model.kv_per_token * option.setup.kv_bits / 8,
        "state_bytes_per_request": option.memory.state,
        "max_len": option.max_len or model.max_len,
        "price_per_hour": option.per_hour,
        "notes": list(model.notes),
        "efficiency": "measured" if not option.borrowed else "borrowed",
    }


def memory_facts(made: Memory) -> dict[str, Any]:
    """Bytes of one device."""
    return {
        "total": made.total,
        "context": made.context,
        "allowed": made.allowed,
        "weights": made.weights,
        "workspace": made.workspace,
        "graphs": made.graphs,
        "kv_cache": made.kv_blocks * made.per_block,
        "kv_blocks": made.kv_blocks,
        "kv_tokens": made.kv_tokens,
        "longest_request": made.longest,
        "rows": made.rows,
        "at_once": {str(length): number for length, number in at_once(made)},
    }


def forecast_facts(made: Forecast | None) -> dict[str, Any] | None:
    """Seconds, tokens per second, dollars per million tokens."""
    if made is None:
        return None
    return {
        "rows": made.rows,
        "ttft": made.ttft,
        "ttft_p99": made.ttft_p99,
        "tpot": made.tpot,
        "e2e": made.e2e,
        "burst": made.burst,
        "requests_per_s": made.requests_per_s,
        "output_tokens_per_s": made.output_per_s,
        "total_tokens_per_s": made.total_per_s,
        "cost_per_million_output": made.cost,
        "limit": made.limit,
        "limit_kind": made.kind,
        "shares": made.shares,
    }


def advice_facts(found: Advice) -> dict[str, Any]:
    return {
        "change": found.text,
        "flags": found.flags,
        "throughput": found.throughput,
        "tpot": found.tpot,
        "ttft": found.ttft,
        "cost": found.cost,
        "forecast": forecast_facts(found.forecast),
        "efficiency": "borrowed" if found.borrowed else "measured",
    }


def choice_facts(found: Choice) -> dict[str, Any]:
    option = found.option
    return {
        "gpu": option.gpu.name,
        "gpus": option.gpus,
        "scheme": option.scheme,
        "replicas": found.replicas,
        "concurrency": option.work.concurrency,
        "qps": found.qps,
        "price_per_hour": found.per_hour,
        "cost_per_million_output": found.cost,
        "forecast": forecast_facts(found.forecast),
    }
