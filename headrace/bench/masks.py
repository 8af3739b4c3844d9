"""What structured output costs on the host, per row of a step: following grammars, making masks, applying them."""

from itertools import count
from random import Random
from time import perf_counter
from typing import Any

import numpy as np
import torch

from headrace.bench.result import Measure
from headrace.engine.constrain import Constraints
from headrace.engine.gauge import bits_of
from headrace.engine.grammar import Compiler
from headrace.engine.request import Request
from headrace.engine.scheduler import Row
from headrace.engine.sequence import Sequence
from headrace.engine.structured import StructuredOutputsParams
from headrace.kernels.forbid import forbid
from headrace.text.tokenizer import Tokenizer


def schema(seed: int) -> dict[str, Any]:
    """A list of records as people ask for, without an end; another one for each seed."""
    dice = Random(seed)
    point = {
        "type": "object",
        "properties": {"x": {"type": "number"}, "y": {"type": "number"}},
        "required": ["x"],
    }
    kinds: list[dict[str, Any]] = [
        {"type": "string"},
        {"type": "string", "maxLength": 40},
        {"type": "string", "format": "date"},
        {"type": "integer"},
        {"type": "number"},
        {"type": "boolean"},
        {"type": ["string", "null"]},
        {"enum": ["red", "green", "blue"]},
        {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        {**point, "additionalProperties": False},
    ]
    properties = {f"field_{seed}_{n}": dice.choice(kinds) for n in range(dice.randint(2, 8))}
    record = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "array", "minItems": 10_000, "items": record}


def measure(tokenizer: Tokenizer, vocab: int, rows: int, steps: int) -> list[Measure]:
    """Microseconds per row with `rows` schemas, none like another, in each step; tokens are random allowed ones."""
    compiler = Compiler(tokenizer, vocab, tokenizer.eos_ids)
    constraints = Constraints(compiler, rows)
    seeds = count()
    assert compiler.lltokenizer
    began = perf_counter()
    seqs = [_sequence(next(seeds), compiler, constraints) for _ in range(rows)]
    spent = {"compile": perf_counter() - began, "mask": 0.0, "apply": 0.0, "follow": 0.0}
    logits_SV, dice = torch.zeros(rows, vocab), np.random.default_rng(0)
    for _ in range(steps):
        step = [Row(seq, 0, n, 0, 1, True, True, None) for n, seq in enumerate(seqs)]
        times = [perf_counter()]
        constraints.begin(step)
        masks, ends = constraints.masks()
        times.append(perf_counter())
        assert masks is not None and not ends, "these grammars have no end"
        forbid(logits_SV, torch.from_numpy(masks.rows), masks.bits)
        times.append(perf_counter())
        for seq, row in zip(seqs, masks.bits.numpy(), strict=True):
            seq.tokens.append(int(dice.choice(bits_of(row))))
        times.append(perf_counter())
        constraints.follow(step)
        times.append(perf_counter())
        for name, a, b in (("mask", 0, 1), ("apply", 1, 2), ("follow", 3, 4)):
            spent[name] += times[b] - times[a]
    per = {part: rows if part == "compile" else rows * steps for part in spent}
    name = f"{rows} grammars, {vocab} tokens"
    return [Measure(f"{name}: {part}", spent[part] / per[part] * 1e6, "us/row", "lower") for part in spent]


def _sequence(seed: int, compiler: Compiler, constraints: Constraints) -> Sequence:
    grammar = compiler.grammar(StructuredOutputsParams(json=schema(seed)))
    request = Request(
        id=str(seed), prompt=(1,), grammar=grammar, max_tokens=1 << 20, stop_ids=compiler.eos_ids
    )
    seq = Sequence(request, seed)
    seq.matcher = constraints.matcher(request, compiler.start(grammar.source).result())
    return seq
