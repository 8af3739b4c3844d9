"""From the interpreter's start to the first token: what importing, starting and the first answer take."""

import json
import subprocess
import sys
from statistics import median
from typing import Any

from headrace.base.errors import Broken
from headrace.bench.result import Measure, spread

STAGES = ("import", "start", "first token", "in all")

# Runs in a fresh interpreter, told its settings as JSON.
_SCRIPT = """
import json, sys
from time import perf_counter
began = perf_counter()
from headrace import LLM, SamplingParams
imported = perf_counter()
llm = LLM(**json.loads(sys.argv[1]))
started = perf_counter()
params = SamplingParams(max_tokens=1, ignore_eos=True, detokenize=False)
llm.generate({"prompt_token_ids": list(range(10, 138))}, params, use_tqdm=False)
ended = perf_counter()
print(json.dumps([imported - began, started - imported, ended - started]))
"""


def measure(settings: dict[str, Any], repeats: int) -> list[Measure]:
    """Seconds of each stage, medians over fresh interpreters. `settings` are LLM's.

    The interpreter's own start is not counted. Raises Broken with the last line of an error.
    """
    runs = [_once(settings) for _ in range(repeats)]
    rows = [[*run, sum(run)] for run in runs]
    return [
        Measure(stage, median(seconds), "s", "lower", spread(seconds))
        for stage, seconds in zip(STAGES, zip(*rows, strict=True), strict=True)
    ]


def _once(settings: dict[str, Any]) -> list[float]:
    said = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(settings)], capture_output=True, text=True
    )
    if said.returncode:
        lines = [line for line in said.stderr.splitlines() if line and not line.startswith(" ")]
        raise Broken(f"the model did not start: {lines[-1] if lines else 'it said nothing'}")
    return json.loads(said.stdout.strip().splitlines()[-1])
