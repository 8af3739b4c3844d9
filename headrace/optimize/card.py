"""The model card: what was done to a model, and the command that does it again."""

from collections import Counter
from shlex import quote

import yaml

from headrace import __version__
from headrace.optimize.calibrate import KNOWN
from headrace.optimize.job import Job
from headrace.optimize.outcome import Outcome
from headrace.optimize.passes import options_of
from headrace.optimize.recipe import NONE
from headrace.quant.export import VERSION


def card(job: Job, outcome: Outcome) -> str:
    """README.md, with nothing in it that differs between two runs of the same recipe."""
    name, recipe = job.path.name if job.path.is_dir() else job.path.stem, job.recipe
    rounded = [layer for layer in outcome.layers if layer.scheme != NONE]
    about = {
        "library_name": "headrace",
        "base_model": job.model,
        "tags": ["quantized", "compressed-tensors"],
    }
    kinds = Counter(each.scheme.name if each.scheme else "as it is" for each in job.plan.values())
    lines = [
        "---",
        yaml.safe_dump(about, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {name}, optimized",
        "",
        f"Made from `{job.model}` by headrace {__version__}. Weights are in the layout of compressed-tensors "
        f"{VERSION}, which headrace, vLLM and transformers read.",
        "",
        f"{_mb(outcome.before)} became {_mb(outcome.after)}; weights of the blocks' linear layers have "
        f"{outcome.bits:.2f} bits each, scales included.",
        "",
        "## What was done",
        "",
        *(f"- {each.name}: {_options(options_of(each))}" for each in recipe.passes),
        "",
        "| layers | scheme |",
        "|---|---|",
        *(f"| {count} | {scheme} |" for scheme, count in kinds.most_common()),
        "",
        *_calibration(job),
        "## Doing it again",
        "",
        f"    headrace optimize {quote(job.model)} -o OUT --recipe recipe.yaml",
        "",
        "with `recipe.yaml` from this folder gives the same files on a like machine with as many threads.",
        "",
        "## Running it",
        "",
        "    headrace run --model .",
        "",
        "## Change of each layer's outputs",
        "",
        "||W'x' - Wx|| / ||Wx|| on sampled inputs of the calibration; x' is x as the scheme rounds it."
        if job.ids_ST is not None
        else "||W' - W|| / ||W||: there was no calibration.",
        "",
        "| layer | scheme | pass | bits | change |",
        "|---|---|---|---:|---:|",
        *(f"| {a.name} | {a.scheme} | {a.rounding} | {a.bits:.2f} | {a.error:.4f} |" for a in rounded),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _calibration(job: Job) -> list[str]:
    if job.ids_ST is None:
        return ["No calibration.", ""]
    found = job.recipe.calibration
    texts = "; ".join(KNOWN[name].terms if name in KNOWN else name for name in found.texts)
    return [
        f"Calibrated with {found.samples} windows of {found.tokens} tokens (seed {found.seed}): {texts}.",
        "",
    ]


def _options(options: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "no options"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
