"""Results as JSON, with the keys of vLLM's benchmark where the meaning is the same, and as CSV."""

import csv
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, get_args

from headrace.bench.files import write
from headrace.bench.result import commit, versions
from headrace.bench.serve.campaign import Campaign, Level
from headrace.bench.serve.measures import PERCENTILES, Definitions, Json, itls, summarize

SCHEMA = 1
"""Grows when a reader of older files would misunderstand newer ones."""

OF_VLLM = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2e": "e2el"}


def document(campaign: Campaign, levels: Sequence[Level], settings: Json, found: Json | None = None) -> Json:
    """Everything, one entry per level."""
    return {
        "schema": SCHEMA,
        "benchmark": "serve",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_id": campaign.ask.model,
        "url": campaign.target.url,
        "endpoint_type": "openai-chat" if campaign.ask.endpoint == "chat" else "openai",
        "versions": versions("headrace"),
        "commit": commit(),
        "definitions": campaign.definitions,
        "goodput_limits": campaign.limits,
        "settings": settings,
        "search": found,
        "levels": [level_json(level) for level in levels],
    }


def level_json(level: Level) -> Json:
    """One level. Its own keys are nested; those at the top are vLLM's, in vLLM's units, of the whole run."""
    load, whole = level.load, level.whole
    ok = [sample for sample in level.samples if sample.outcome == "ok"]
    return {
        "name": load.name,
        "load": {name: _plain(getattr(load, name)) for name in load.__struct_fields__},
        **vllm_keys(level),
        "whole": whole.as_json(),
        "steady": level.steady and level.steady.as_json(),
        "window": level.window,
        "by_definition": _by_definition(level),
        "server": None if level.server is None else level.server._asdict(),
        "server_points": [[round(point.at - level.start, 3), point.values] for point in level.points],
        "client_cpu_seconds": level.cpu,
        "warnings": level.warnings,
        "input_lens": [sample.prompt_tokens for sample in ok],
        "output_lens": [sample.output_tokens for sample in ok],
        "ttfts": [_round((sample.first or 0.0) - sample.scheduled) for sample in ok],
        "itls": [[_round(gap) for gap in itls(sample)] for sample in ok],
        "start_times": [_round(sample.scheduled) for sample in ok],
        "ends": [_round(sample.ended) for sample in ok],
        "lags": [_round(sample.sent - sample.scheduled) for sample in ok],
    }


def vllm_keys(level: Level) -> Json:
    """What tools that read vLLM's files look for. Times in milliseconds."""
    whole, load = level.whole, level.load
    found: Json = {
        "num_prompts": whole.sent,
        "request_rate": _plain(load.rate) if load.streams is None else "inf",
        "burstiness": load.burstiness,
        "max_concurrency": load.streams,
        "duration": whole.duration,
        "completed": whole.outcomes.get("ok", 0),
        "failed": whole.sent - whole.outcomes.get("ok", 0) - whole.outcomes.get("cancelled", 0),
        "total_input_tokens": whole.input_tokens,
        "total_output_tokens": whole.output_tokens,
        "request_throughput": whole.requests_per_second,
        "request_goodput": whole.goodput,
        "output_throughput": whole.output_per_second,
        "total_token_throughput": whole.total_per_second,
    }
    for name, theirs in OF_VLLM.items():
        spread = whole.spreads[name]
        found |= {
            f"mean_{theirs}_ms": spread and spread.mean * 1000,
            f"median_{theirs}_ms": spread and spread.percentiles[50][0] * 1000,
            f"std_{theirs}_ms": spread and spread.std * 1000,
            **{f"p{part}_{theirs}_ms": spread and spread.percentiles[part][0] * 1000 for part in PERCENTILES},
        }
    return found


def _by_definition(level: Level) -> Json:
    """The same samples as other tools would count them, in seconds."""
    found: Json = {}
    for definitions in get_args(Definitions):
        spreads = summarize(level.samples, level.whole.duration, None, definitions).spreads
        found[definitions] = {
            name: spread
            and {"mean": spread.mean, **{f"p{part}": spread.percentiles[part][0] for part in (50, 99)}}
            for name, spread in spreads.items()
        }
    return found


def write_json(path: Path, said: Json) -> None:
    """Raises Refused for a path that cannot be written."""
    write(path, json.dumps(said, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, levels: Sequence[Level]) -> None:
    """A line per level: vLLM's keys, then the server's side. Raises Refused."""
    rows: list[Json] = []
    for level in levels:
        server = level.server._asdict() if level.server else {}
        server = {f"server_{name}": value for name, value in server.items()}
        rows.append({"name": level.load.name, **vllm_keys(level), **server})
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue(), "csv")


def write_samples(path: Path, levels: Sequence[Level]) -> None:
    """A line of JSON per request: everything the client noted. Raises Refused."""
    lines = [
        json.dumps({"level": level.load.name, **{n: getattr(sample, n) for n in sample.__struct_fields__}})
        + "\n"
        for level in levels
        for sample in level.samples
    ]
    write(path, "".join(lines), "samples")


def _plain(value: Any) -> Any:
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def _round(seconds: float) -> float:
    return round(seconds, 6)
