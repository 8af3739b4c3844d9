"""Times one stream at a time: the wait for the first token, and between tokens."""

from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli._load import load
from headrace.cli.bench._checks import at_least
from headrace.cli.bench._report import FileFlags, Files, facts
from headrace.engine.request import SamplingParams


def run(
    *,
    tokens_in: int = 128,
    tokens_out: int = 128,
    repeats: int = 5,
    temperature: float = 0.8,
    files: FileFlags = Files(),
    engine: EngineFlags = Engine(),
) -> None:
    """Time one stream at a time: time to first token (TTFT) and between tokens (ITL), without HTTP.

    Parameters
    ----------
    tokens_in
        tokens of each prompt
    tokens_out
        tokens of each answer
    repeats
        streams that are timed, after one to warm up
    temperature
        of the sampling; 0 takes the likeliest token
    """
    at_least(1, tokens_in=tokens_in, tokens_out=tokens_out, repeats=repeats)
    SamplingParams(temperature=temperature)  # what cannot be is refused before a model is loaded
    report = files.begin("latency")
    from headrace.bench.latency import measure
    from headrace.bench.plain import gpu_name

    llm = load(engine.config)
    measures = measure(llm, tokens_in, tokens_out, repeats, temperature)
    settings = {
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "repeats": repeats,
        "temperature": temperature,
    }
    settings |= facts(llm.plan)
    report.show(settings, measures, gpu_name(llm.plan.device))
