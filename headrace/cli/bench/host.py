"""Times what a step costs on the host, with no model behind it."""

from headrace.bench.result import Measure
from headrace.cli.bench._checks import at_least
from headrace.cli.bench._report import FileFlags, Files

CASES = ((1, 128, 256), (64, 128, 128), (256, 128, 128), (512, 128, 64), (64, 2048, 1))
"""Requests, tokens in and tokens out of each."""
MOST_TOKENS = 1 << 20
GRAMMARS, MASK_STEPS = 128, 60


def run(*, step_tokens: int = 8192, grammars: str | None = None, files: FileFlags = Files()) -> None:
    """Time planning, filling the batch and committing, per row (per token where prompts dominate).

    Parameters
    ----------
    step_tokens
        most tokens of a step
    grammars
        model for whose vocabulary masks of structured output are timed as well, 128 schemas in a step
    """
    at_least(1, MOST_TOKENS, step_tokens=step_tokens)
    report = files.begin("host")
    from headrace.bench.host import measure

    measures = [] if grammars is None else _masks(grammars)
    for rows, tokens_in, tokens_out in CASES:
        costs = measure(rows, tokens_in, tokens_out, step_tokens)
        measures += costs.measures(f"{rows} x {tokens_in}+{tokens_out}")
    report.show({"step_tokens": step_tokens}, measures)


def _masks(model: str) -> list[Measure]:
    from headrace.bench import masks
    from headrace.checkpoint.config import read_config, read_tokenizer
    from headrace.checkpoint.hub import find

    path = find(model)
    return masks.measure(read_tokenizer(path), int(read_config(path)["vocab_size"]), GRAMMARS, MASK_STEPS)
