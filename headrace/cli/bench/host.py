"""Times what a step costs on the host, with no model behind it."""

from headrace.cli.bench._report import FileFlags, Files, report, result

CASES = ((1, 128, 256), (64, 128, 128), (256, 128, 128), (512, 128, 64), (64, 2048, 1))
"""Requests, tokens in and tokens out of each."""


def run(*, step_tokens: int = 8192, files: FileFlags = Files()) -> None:
    """Time planning, filling the batch and committing, per row (per token where prompts dominate).

    Parameters
    ----------
    step_tokens
        most tokens of a step
    """
    from headrace.bench.host import measure

    measures = []
    for rows, tokens_in, tokens_out in CASES:
        costs = measure(rows, tokens_in, tokens_out, step_tokens, None)
        measures += costs.measures(f"{rows} x {tokens_in}+{tokens_out}")
    report(result("host", {"step_tokens": step_tokens}, measures), files)
