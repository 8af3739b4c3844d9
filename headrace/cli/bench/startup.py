"""Times what happens before the first token, in fresh interpreters."""

from headrace.base.config import Config, values
from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli.bench._checks import at_least
from headrace.cli.bench._report import FileFlags, Files, report


def run(*, repeats: int = 3, files: FileFlags = Files(), engine: EngineFlags = Engine()) -> None:
    """Time importing, starting and the first token: medians over fresh interpreters.

    Parameters
    ----------
    repeats
        how many interpreters are started, one after the other
    """
    at_least(1, repeats=repeats)
    from headrace.bench.startup import measure
    from headrace.checkpoint.hub import find

    find(engine.config.model.path)  # fetched before it is timed, refused here where there is none

    given = values(engine.config)
    settings = {name: value for name, value in given.items() if value != values(Config())[name]}
    report("startup", {"repeats": repeats, **settings}, measure(settings, repeats), files)
