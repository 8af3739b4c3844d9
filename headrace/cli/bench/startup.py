"""Times what happens before the first token, in fresh interpreters."""

from headrace.base.config import Config, values
from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli.bench._checks import at_least
from headrace.cli.bench._report import FileFlags, Files


def run(*, repeats: int = 3, files: FileFlags = Files(), engine: EngineFlags = Engine()) -> None:
    """Time importing, starting and the first token: medians over fresh interpreters.

    Parameters
    ----------
    repeats
        how many interpreters are started, one after the other
    """
    at_least(1, repeats=repeats)
    report = files.begin("startup")
    from headrace.bench.startup import measure
    from headrace.engine.start import look

    look(engine.config)  # fetched before it is timed, refused here where it cannot be
    given = values(engine.config)
    settings = {name: value for name, value in given.items() if value != values(Config())[name]}
    report.show({"repeats": repeats, **settings}, measure(settings, repeats))
