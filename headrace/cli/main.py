"""The `headrace` command: finds the commands, parses the words, turns faults into messages and exit codes."""

import errno
import os
import sys
from inspect import cleandoc
from io import TextIOWrapper
from pathlib import Path
from pkgutil import iter_modules
from types import TracebackType
from typing import Literal, TextIO

from cyclopts import App
from cyclopts.exceptions import CycloptsError, MissingArgumentError, UnusedCliTokensError

from headrace import __version__, cli
from headrace.base.errors import Fault
from headrace.base.log import setup

INTERRUPTED = 130
"""128 and the number of SIGINT: what shells expect of a program that was stopped with Ctrl-C."""
PIPE_CLOSED = 141
DEBUG = "--debug"
EPILOGUE = f"{DEBUG}, given with any command, logs what happens and shows the traceback of an error."


def main(words: list[str] | None = None) -> None:
    """The entry point of the program; leaves through SystemExit."""
    words = list(sys.argv[1:] if words is None else words)
    options = words[: words.index("--")] if "--" in words else words
    if debug := DEBUG in options:
        words.remove(DEBUG)
    else:
        sys.excepthook = _one_line
    sys.stdin, sys.stdout = sys.stdin or _nowhere("r"), sys.stdout or _nowhere("w")
    sys.stderr = sys.stderr or _nowhere("w")
    if os.environ.get("COLUMNS") == "0":  # what some terminals that do not know say
        del os.environ["COLUMNS"]
    setup("debug" if debug else "warning")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that cannot show a character shows another one
            stream.reconfigure(errors="replace")
    sys.exit(run(words, debug))


def run(words: list[str], debug: bool = False) -> int:
    """Run one command; its exit code. What is no fault of a known kind passes through, and so does all with debug."""
    try:
        answer = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return answer if isinstance(answer, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read it has left
        _write_no_more()
        return PIPE_CLOSED
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # what rich makes of it
            return PIPE_CLOSED
        raise
    except CycloptsError as error:
        return _say(_misread(error), _hint(error), 2)
    except Fault as fault:
        if debug:
            raise
        return _say(fault.message, fault.hint, fault.exit_code)


def _nowhere(mode: Literal["r", "w"]) -> TextIO:
    """In place of a stream that was closed before we began."""
    return Path(os.devnull).open(mode, encoding="utf-8")


def _write_no_more() -> None:
    """What is still in the buffer of standard output must not be written at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _misread(error: CycloptsError) -> str:
    """What is wrong with the words; in ours where the parser's say little."""
    said = str(error)
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"no place for {' '.join(error.unused_tokens)!r}; text with spaces belongs in quotes"
    if isinstance(error, MissingArgumentError) and error.argument and not error.keyword:
        return f"{error.argument.name} is missing" if said.endswith("requires an argument.") else said
    return said


def _hint(error: CycloptsError) -> str:
    command = " ".join([app.name[0], *(error.command_chain or ())])
    return f"see `{command} --help`"


def _say(message: str, hint: str, code: int) -> int:
    sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))
    return code


def _one_line(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    """What is said of an error that is no Fault. The interpreter exits with 1 after it."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        _write_no_more()
        said = f"{error.filename or 'all that there is to say'} cannot be written: {error.strerror}"
        _say(said, "make room, or write to another disk", 1)
        return
    said = f"{kind.__name__}: {error}" if str(error) else kind.__name__
    _say(f"unexpected {said}", f"this is a bug in headrace; run it again with {DEBUG} for the traceback", 1)


# -- the commands ---------------------------------------------------------------------------------------------


def _help(file: Path) -> str:
    """What a command says about itself, or a folder of commands: read without importing it, or even parsing it.

    That is done for all of them whenever one is run.
    """
    source = file.read_text(encoding="utf-8")
    doc = cleandoc(source[max(0, source.find("\ndef run(")) :].split('"""', 2)[1])
    text = doc.partition("\n\nParameters\n")[0]  # the flags' own help is read when the command is imported
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _add_commands(group: App, package: str, folder: Path) -> None:
    """Each module is a command, each folder a group of them; those that begin with `_` are neither."""
    for module in iter_modules([str(folder)]):
        if module.name.startswith("_") or module.name == "main":
            continue
        if module.ispkg:
            inner = App(name=module.name, help=_help(folder / module.name / "__init__.py"))
            _add_commands(inner, f"{package}.{module.name}", folder / module.name)
            group.command(inner)
        else:
            help = _help(folder / f"{module.name}.py")
            group.command(f"{package}.{module.name}:run", name=module.name, help=help)


def _made() -> App:
    made = App(
        name="headrace",
        help="Runs large language models on the machine you have.",
        help_epilogue=EPILOGUE,
        version=__version__,
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    _add_commands(made, cli.__name__, Path(cli.__path__[0]))
    return made


app = _made()
