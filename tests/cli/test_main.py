"""The program as a whole: light to start, clear about what is wrong, with the exit codes shells expect."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

from headrace import __version__, cli
from headrace.base.errors import Broken, Busy, Refused, Unreachable
from headrace.cli import main
from tests.cli.conftest import Command

PACKAGE = Path(cli.__path__[0]).parent


def leaves(group: App, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    """Every command with the words that lead to it."""
    for name in group:
        if not name.startswith("-"):
            inner = group[name]
            if inner.default_command:
                yield (*words, name), inner
            else:
                yield from leaves(inner, (*words, name))


COMMANDS = dict(leaves(main.app))


def flags(command: App) -> dict[str, str]:
    """Flag -> help of one command."""
    return {
        name: argument.parameter.help or argument.field_info.help or ""
        for argument in command.assemble_argument_collection(parse_docstring=True)
        if not argument.children
        for name in argument.names
    }


def test_each_file_is_a_command_and_there_are_no_others():
    folder = Path(cli.__path__[0])
    files = [file.relative_to(folder).with_suffix("") for file in folder.rglob("*.py")]
    expected = {file.parts for file in files if not file.name.startswith("_") and file.name != "main"}
    assert set(COMMANDS) == expected
    assert ("run",) in expected


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help(words: tuple[str, ...], command: Command):
    code, out, err = command(*words, "--help")
    assert (code, err) == (0, "")
    assert f"headrace {' '.join(words)}" in out


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_flag_has_help(words: tuple[str, ...]):
    assert not [name for name, help in flags(COMMANDS[words]).items() if len(help.split()) < 2]


def test_the_program_has_help_and_a_version(command: Command):
    code, out, _ = command("--help")
    assert code == 0
    assert all(words[0] in out for words in COMMANDS)
    assert "--debug" in out
    assert command("--version")[:2] == (0, f"{__version__}\n")


@pytest.mark.parametrize("words", ["--help", "run --help", "eval perplexity --help"])
def test_help_loads_nothing_heavy(words: str):
    code = f"import sys\nfrom headrace.cli.main import run\nrun({words.split()!r})\nprint('LOADED', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    loaded = set(done.stdout.partition("LOADED")[2].split())
    assert "cyclopts" in loaded
    assert not loaded & {"torch", "tokenizers", "huggingface_hub", "jinja2", "prompt_toolkit"}


# -- what is wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        ("rum", 'Unknown command "rum". Did you mean "run"?', "headrace --help"),
        ("run --tempratur 1 hi", "--temperature", "headrace run --help"),
        ("run --dtype float8 hi", '"float8"', "headrace run --help"),
        ("run --max-len few hi", '"few"', "headrace run --help"),
        ("run --max-len", "requires an argument", "headrace run --help"),
        ("run hi there", "'there'", "headrace run --help"),
        ("batch in.jsonl", "--output", "headrace batch --help"),
        ("eval perplexity --txt x", "--text", "headrace eval perplexity --help"),
    ],
)
def test_words_that_make_no_sense(words: str, said: str, hint: str, command: Command):
    code, out, err = command(*words.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert f"hint: see `{hint}`\n" in err


def test_a_knob_out_of_bounds_is_refused_before_anything_is_loaded(command: Command):
    code, _, err = command("run", "hi", "--memory.share", "nan")
    assert code == 2
    assert err == "error: memory.share is nan; expected a number from 0.01 to 1\n"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Refused("no"), 2),
        (Unreachable("no", hint="wait"), 2),
        (Broken("no"), 1),
        (Busy("no"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(fault: BaseException, code: int, command: Command, monkeypatch: pytest.MonkeyPatch):
    def pull(model: str) -> Path:
        raise fault

    monkeypatch.setattr("headrace.checkpoint.hub.pull", pull)
    done = command("pull", "x")
    assert done[0] == code
    if not isinstance(fault, KeyboardInterrupt):
        assert done[2] == "error: no\n" + ("hint: wait\n" if isinstance(fault, Unreachable) else "")


def _program(code: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """The program in an interpreter of its own, after `code`."""
    start = f"{code}\nimport sys\nfrom headrace.cli.main import main\nmain({list(words)!r})"
    return subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, timeout=120)


BUG = "import headrace.checkpoint.hub as hub\ndef pull(model): raise ZeroDivisionError('by nought')\nhub.pull = pull"


def test_an_unforeseen_error_is_one_line():
    done = _program(BUG, "pull", "x")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: unexpected ZeroDivisionError: by nought",
        "hint: this is a bug in headrace; run it again with --debug for the traceback",
    ]


def test_debug_shows_where():
    done = _program(BUG, "pull", "x", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "line 2, in pull" in done.stderr


def test_debug_shows_where_a_refusal_is_from_too():
    done = _program("", "pull", "./nowhere.gguf", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_debug_after_two_hyphens_is_a_word_like_others():
    done = _program(
        BUG.replace("ZeroDivisionError('by nought')", "ZeroDivisionError(model)"), "pull", "--", "--debug"
    )
    assert "unexpected ZeroDivisionError: --debug" in done.stderr


def test_a_reader_that_leaves_is_no_error():
    code = "import headrace.checkpoint.hub as hub\nhub.pull = lambda model: 'x' * 10**6"
    code += "\nfrom headrace.cli.main import main\nmain(['pull', 'x'])"
    shell = '"$0" -c "$1" | head -c 1; echo ${PIPESTATUS[0]}'
    done = subprocess.run(
        ["bash", "-c", shell, sys.executable, code], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("x141\n", "")


@pytest.mark.parametrize("words", ["plan llama-3.1-8b", "plan llama-3.1-8b --json"])
def test_nobody_reads_it(words: str):
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "headrace", *words.split()]
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("words", ["plan llama-3.1-8b", "plan llama-3.1-8b --json", "--help"])
def test_a_full_disk_under_standard_output_is_said(words: str):
    done = _shell(words, "> /dev/full; echo $?")
    assert done.stdout == "1\n"
    assert done.stderr.splitlines() == [
        "error: all that there is to say cannot be written: No space left on device",
        "hint: make room, or write to another disk",
    ]


def test_a_closed_standard_output_is_no_error():
    done = _shell("plan llama-3.1-8b --json", ">&-; echo $?")
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_closed_standard_input_is_an_empty_one():
    done = _shell("run", "<&-; echo $?")
    assert (done.stdout, done.stderr.splitlines()[0]) == ("2\n", "error: the prompt is empty")


def test_a_width_of_nothing_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "0")
    assert "Commands" in _shell("--help", "").stdout


def _shell(words: str, rest: str) -> "subprocess.CompletedProcess[str]":
    line = f'"{sys.executable}" -m headrace {words} {rest}'
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)


# -- what messages say ----------------------------------------------------------------------------------------


def messages(file: Path) -> Iterator[str]:
    """The strings of a file that become errors and hints; none where no flag is named."""
    source = file.read_text()
    for node in ast.walk(ast.parse(source)) if re.search(r"--[a-z]", source) else ():
        if isinstance(node, ast.Raise) or (isinstance(node, ast.keyword) and node.arg == "hint"):
            inside = ast.walk(node)
        elif isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "hint" for t in node.targets):
            inside = ast.walk(node.value)
        else:
            continue
        yield from (
            part.value for part in inside if isinstance(part, ast.Constant) and isinstance(part.value, str)
        )


def test_flags_that_messages_name_exist():
    known = {name for command in COMMANDS.values() for name in flags(command)} | {"--debug", "--help"}
    named = {
        (file.name, name)
        for file in PACKAGE.rglob("*.py")
        for text in messages(file)
        for name in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text)
    }
    assert {("room.py", "--memory.share"), ("room.py", "--max-len")} <= named
    others = {("gguf.py", "--merge")}  # of gguf-split
    assert not {(file, name) for file, name in named - others if name not in known}
