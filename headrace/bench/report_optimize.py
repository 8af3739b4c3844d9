"""The report of an optimization: what was done, what it cost in quality, what it gained; as HTML and as JSON."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, isfinite
from typing import Any, NamedTuple

from headrace.bench.chart import Line, draw
from headrace.bench.divergence import Divergence
from headrace.bench.estimate import Estimate
from headrace.bench.page import definitions, opening, settings, table
from headrace.bench.result import Result, as_json
from headrace.optimize.outcome import FORMAT, Layer, Outcome

DEFINITIONS = (
    ("±", "one standard error, from how much windows of a text differ; texts themselves are fixed"),
    (
        "KL",
        "sum over the vocabulary of p log(p / q) in nats, p being the base's distribution of the next token and q the"
        " result's; its mean over tokens, and the value that one token in a hundred exceeds (p99)",
    ),
    ("top-1", "share of tokens for which both find the same token likeliest"),
    (
        "perplexity",
        "exp of the mean of -log of the probability of the token that follows; the ratio's error knows that both models"
        " read the same tokens",
    ),
    (
        "output error",
        "of a layer: |W'x' - Wx| / |Wx| over inputs x sampled while calibrating, x' being x as the scheme rounds it;"
        " |W' - W| / |W| where nothing was calibrated",
    ),
    ("sensitivity", "how much worse the model gets, in mean KL, when this layer alone has that scheme"),
    (
        "bits per weight",
        "stored bits of all weights of the blocks' linear layers, scales and zero points included, over their number",
    ),
)


class Point(NamedTuple):
    """A way to give schemes to layers: bits per weight and the loss foreseen, and whether it was taken."""

    bits: float
    loss: float
    taken: bool = False


class Speed(NamedTuple):
    """One stream alone, without HTTP: tokens per second after the first, and the wait for the first in ms."""

    kept: str
    per_second: float
    first_ms: float


@dataclass(frozen=True)
class Story:
    """What happened to a model, and what is known of the result.

    quality      one row per text; the last is all of them together where there are several
    speed        before and after, where both were measured
    result       what judged where
    sensitivity  layer -> scheme -> loss, where a search measured it
    frontier     the least losses for their sizes, where a search found them
    """

    outcome: Outcome
    result: Result
    quality: Sequence[Divergence] = ()
    speed: tuple[Speed, Speed] | None = None
    sensitivity: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    frontier: Sequence[Point] = ()


def document(story: Story) -> dict[str, Any]:
    """The report as JSON has it."""
    return {
        "format": FORMAT,
        "outcome": as_json(story.outcome.as_object()),
        "quality": as_json(story.quality),
        "speed": None
        if story.speed is None
        else dict(zip(("before", "after"), as_json(story.speed), strict=True)),
        "sensitivity": as_json(story.sensitivity),
        "frontier": as_json(story.frontier),
        "run": as_json(story.result),
    }


def html(story: Story) -> str:
    """The whole page."""
    outcome, where = story.outcome, story.result
    known = {
        **where.machine,
        **where.settings,
        "tokens seen in calibration": f"{outcome.tokens:,}",
        "seconds of optimizing": f"{outcome.seconds:,.0f}{', after an interruption' if outcome.resumed else ''}",
        **where.versions,
        "commit": where.commit,
    }
    parts = [
        opening(f"{escape(outcome.model)}, optimized"),
        _summary(story),
        _quality(story.quality),
        _gains(story),
        _errors(outcome.layers),
        _sensitivity(story.sensitivity),
        _frontier(story.frontier),
        _layers(outcome.layers),
        f"<h2>Recipe</h2><pre>{escape(outcome.recipe.to_yaml().strip())}</pre>",
        definitions(DEFINITIONS),
        settings(known),
        "</html>",
    ]
    return "\n".join(part for part in parts if part)


def _summary(story: Story) -> str:
    before, after = story.outcome.before, story.outcome.after
    said = [
        f"{_size(before)} became {_size(after)} ({after / before:.1%})",
        f"{story.outcome.bits:.2f} bits per weight",
    ]
    if story.quality:
        last = story.quality[-1]
        said.append(f"perplexity {last.ratio.value - 1:+.2%}")
        said.append(f"mean KL {last.kl.value:.4f}")
        said.append(f"the same likeliest token for {last.top1.value:.1%}")
    if story.speed is not None:
        said.append(
            f"{story.speed[1].per_second / story.speed[0].per_second:.2f} times as fast for one stream"
        )
    return f'<p class="sub">{"; ".join(said)}.</p>'


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _cell(estimate: Estimate, form: str, small: str) -> str:
    error = f"<small>± {estimate.error:{small}}</small>" if isfinite(estimate.error) else ""
    return f"{estimate.value:{form}}{error}"


def _quality(rows: Sequence[Divergence]) -> str:
    if not rows:
        return "<h2>Quality</h2><p>was not measured</p>"
    heads = ("text", "tokens", "mean KL", "KL p99", "top-1", "perplexity", "base's", "ratio")
    cells = [
        [
            escape(row.text),
            f"{row.tokens:,}",
            _cell(row.kl, ".4f", ".2g"),
            _cell(row.p99, ".3f", ".2g"),
            _cell(row.top1, ".2%", ".2%"),
            _cell(row.other, ".3f", ".2g"),
            _cell(row.base, ".3f", ".2g"),
            _cell(row.ratio, ".4f", ".2g"),
        ]
        for row in rows
    ]
    note = "<p>On texts that were not calibrated with, against the base in its own precision.</p>"
    return "<h2>Quality</h2>" + note + table(heads, cells)


def _gains(story: Story) -> str:
    before, after = story.outcome.before, story.outcome.after
    rows = [["weights", _size(before), _size(after), f"{after / before:.1%}"]]
    if story.speed is not None:
        old, new = story.speed
        rows += [
            ["tokens per second, one stream", *_change(old.per_second, new.per_second)],
            ["time to the first token, ms", *_change(old.first_ms, new.first_ms)],
            ["weights multiplied as", escape(old.kept), escape(new.kept), ""],
        ]
    return "<h2>Size and speed on this machine</h2>" + table(("", "before", "after", ""), rows)


def _change(old: float, new: float) -> tuple[str, str, str]:
    return f"{old:.1f}", f"{new:.1f}", f"{new / old:.2f} x"


# -- layers -----------------------------------------------------------------------------------------------------


def _place(name: str) -> tuple[str, str, int | None]:
    """(what it is part of, which projection, number of the block) of a layer's name in checkpoints."""
    rest, _, last = name.rpartition(".")
    found = re.search(r"\.(\d+)\.", name)
    return rest.rpartition(".")[2], last, int(found[1]) if found else None


def _by_part(values: Mapping[str, float]) -> dict[str, list[Line]]:
    """Lines over the block's number, one per kind of projection, by what they are part of."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, value in values.items():
        part, projection, block = _place(name)
        if block is not None:
            found.setdefault(part, {}).setdefault(projection, []).append((block, value))
    return {part: [Line(name, points) for name, points in kinds.items()] for part, kinds in found.items()}


def _errors(layers: Sequence[Layer]) -> str:
    charts = _by_part({layer.name: layer.error for layer in layers if layer.scheme != "none"})
    drawn = "".join(draw(lines, "block", "output error", log_y=True) for lines in charts.values())
    return f'<h2>Output error by layer</h2><div class="charts">{drawn}</div>' if drawn else ""


def _sensitivity(found: Mapping[str, Mapping[str, float]]) -> str:
    """A chart for each scheme and part: schemes differ by powers of ten."""
    schemes = list(dict.fromkeys(scheme for losses in found.values() for scheme in losses))
    drawn = "".join(
        draw(lines, "block", f"mean KL, {part} in {scheme}", log_y=True)
        for scheme in schemes
        for part, lines in _by_part(
            {name: losses[scheme] for name, losses in found.items() if scheme in losses}
        ).items()
    )
    return f'<h2>Sensitivity by layer</h2><div class="charts">{drawn}</div>' if drawn else ""


def _frontier(points: Sequence[Point]) -> str:
    if not points:
        return ""
    ordered = sorted(points)
    marks = [(float(bits), str(bits)) for bits in range(floor(ordered[0].bits), ceil(ordered[-1].bits) + 1)]
    lines = [
        Line("least loss for the size", [(point.bits, point.loss) for point in ordered]),
        Line("taken", [(point.bits, point.loss) for point in ordered if point.taken], dots=True),
    ]
    drawn = draw(lines, "bits per weight", "loss foreseen, mean KL", log_y=True, x_labels=marks)
    return f'<h2>Frontier</h2><div class="charts">{drawn}</div>'


def _layers(layers: Sequence[Layer]) -> str:
    rows = [
        [
            escape(layer.name),
            "as it was" if layer.scheme == "none" else escape(f"{layer.scheme}, {layer.rounding}"),
            f"{layer.bits:.2f}",
            "" if layer.scheme == "none" else f"{layer.error:.4f}",
            f"{layer.seconds:.1f}",
        ]
        for layer in layers
    ]
    heads = ("layer", "scheme", "bits per weight", "output error", "seconds")
    return f"<details><summary>All {len(rows)} layers</summary>{table(heads, rows)}</details>"
