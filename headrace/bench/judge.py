"""Judges what an optimizer's run made: quality against the base, speed of both, and the report beside the weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.api.llm import LLM
from headrace.base.config import Config, replace_dotted
from headrace.base.words import dtype_name
from headrace.bench import divergence, latency, texts
from headrace.bench.files import write
from headrace.bench.plain import as_judged, forget, gpu_name, open_plain
from headrace.bench.report_optimize import Point, Speed, Story, document, html
from headrace.bench.result import Result
from headrace.engine.resolve import pick_device
from headrace.engine.start import Notify
from headrace.optimize.outcome import REPORT, Outcome

HTML = "report.html"


@dataclass(frozen=True, slots=True)
class Trial:
    """How much is measured.

    texts      files or names of bench.texts.KNOWN; none: quality is not measured
    tokens     predicted per window
    windows    of each text, from its beginning; None: all
    generated  tokens of each answer that is timed, 0: speed is not measured
    """

    texts: tuple[str, ...] = ("gsm8k", "hamlet", "humaneval")
    tokens: int = 512
    windows: int | None = 8
    generated: int = 48


def judge(
    outcome: Outcome,
    config: Config,
    trial: Trial = Trial(),
    notify: Notify = lambda stage, part: None,
    *,
    sensitivity: Mapping[str, Mapping[str, float]] | None = None,
    frontier: Sequence[Point] = (),
) -> Story:
    """Measure, and write report.html and report.json into the folder of the result.

    `config` says the device, the dtype and the threads; the models are the outcome's. Raises Refused where the disk
    does not take the report, and what loading does.
    """
    quality: list[divergence.Divergence] = []
    if trial.texts:
        quality = _quality(outcome, config, trial, notify)
        forget()
    speed = None
    if trial.generated:
        # As they run where nobody says how; quality is that of the very numbers.
        sides = (replace_dotted(config, {"model.path": side}) for side in (outcome.model, str(outcome.out)))
        before, after = (_speed(side, trial.generated, notify) for side in sides)
        speed = before, after
    story = Story(outcome, _where(config, outcome, trial), quality, speed, sensitivity or {}, frontier)
    save(story, outcome.out)
    return story


def save(story: Story, folder: Path) -> None:
    """Each file as a whole, JSON last: what it lacks has not been measured. Raises Refused."""
    write(folder / HTML, html(story))
    write(folder / REPORT, json.dumps(document(story), indent=1, allow_nan=False) + "\n")


def _quality(outcome: Outcome, config: Config, trial: Trial, notify: Notify) -> list[divergence.Divergence]:
    read = {name: texts.read(name) for name in trial.texts}
    base, made = (open_plain(as_judged(config, model), notify) for model in (outcome.model, str(outcome.out)))
    # What was made is judged, however short it reads.
    tokens = min(trial.tokens, base.longest - 1, made.longest - 1)
    windows = divergence.windows(base, [made], read, tokens, trial.windows)
    said = "comparing with the base"
    return divergence.compare(base, [made], windows, lambda done, of: notify(said, done / of))[0]


def _speed(config: Config, tokens: int, notify: Notify) -> Speed:
    llm = LLM(config=config, progress=notify)
    notify("timing one stream", 0.0)
    rows = {row.name: row.value for row in latency.measure(llm, 64, tokens, repeats=3, temperature=0.0)}
    kept = f"{llm.plan.quantization}, {dtype_name(llm.plan.dtype)}"
    del llm
    forget()
    return Speed(kept, 1000 / rows["ITL mean"], rows["TTFT p50"])


def _where(config: Config, outcome: Outcome, trial: Trial) -> Result:
    device = pick_device(config)
    settings = {
        "model": outcome.model,
        "device": str(device),
        "texts judged by": ", ".join(trial.texts),
        "tokens per window": trial.tokens,
    }
    return Result.here("optimize", settings, [], gpu_name(device))


def lines(story: Story) -> list[str]:
    """What a terminal should say at the end."""
    said: list[str] = []
    for row in story.quality:
        said.append(
            f"{row.text}, {row.tokens:,} tokens: perplexity {row.base.value:.3f} to {row.other.value:.3f}"
            f" ({row.ratio.value - 1:+.2%} ± {row.ratio.error:.2%}), KL {row.kl}, p99 {row.p99.value:.3f},"
            f" top-1 {row.top1.value:.2%}"
        )
    if story.speed is not None:
        before, after = story.speed
        said.append(f"one stream: {before.per_second:.1f} to {after.per_second:.1f} tokens per second")
    return [*said, f"report: {story.outcome.out / HTML}"]
