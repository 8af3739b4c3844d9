"""The docs are true: what they point to is there, and what is there they name."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

from headrace.cli.main import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
README = (ROOT / "README.md").read_text()
WALK = (DOCS / "walkthrough.md").read_text()
POINTERS = sorted(
    {
        found
        for page in PAGES
        for found in re.findall(r"`(?:headrace/)?([\w/]+\.py)(?:::([\w.]+))?`", page.read_text())
        if "NAME" not in found[0]
    }
)
TWO_COMMANDS = (
    'pip install . && headrace run "Explain in two sentences what a headrace is."',
    "pip install -e '.[dev]' && pytest",
)


def defined(path: Path) -> Iterator[str]:
    """Names a file defines at its top, and `Class.name` for what its classes define."""

    def names(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.name, node
            elif isinstance(node, ast.Assign):
                yield from ((t.id, node) for t in node.targets if isinstance(t, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id, node

    for name, node in names(ast.parse(path.read_text()).body):
        yield name
        if isinstance(node, ast.ClassDef):
            yield from (f"{name}.{inner}" for inner, _ in names(node.body))


@pytest.mark.parametrize(("file", "name"), POINTERS, ids=lambda part: part or "-")
def test_what_a_page_points_to_is_there(file: str, name: str):
    found = [path for path in (ROOT / file, ROOT / "headrace" / file) if path.exists()]
    assert found, f"no such file: {file}"
    assert not name or name in set(defined(found[0]))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_walk_has_seven_hops_in_order():
    hops = re.findall(r"^## (\d)\. `([\w/]+\.py)::", WALK, re.MULTILINE)
    assert [number for number, _ in hops] == list("1234567")
    assert len({file for _, file in hops}) == 7


def test_the_reading_list_says_how_long_files_are():
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", WALK, re.MULTILINE)
    lines = {file: len((ROOT / file).read_text().splitlines()) for file, _ in rows}
    off = {file: lines[file] for file, said in rows if not 0.8 < int(said) / lines[file] < 1.25}
    assert not off
    (total,) = re.findall(r"^Seventeen files, about ([\d,]+) lines", WALK, re.MULTILINE)
    assert len(rows) == 17
    assert 0.9 < int(total.replace(",", "")) / sum(lines.values()) < 1.1


@pytest.mark.parametrize("command", TWO_COMMANDS)
def test_the_two_commands_are_in_the_readme_as_they_are(command: str):
    assert f"\n    {command}\n" in README


def test_the_readme_is_one_page():
    assert len(README.splitlines()) <= 80


def commands(group: App = app, prefix: str = "headrace") -> dict[str, list[str]]:
    """Full name -> words to type, for every command, those in groups included."""
    found: dict[str, list[str]] = {}
    for name in group:
        if not name.startswith("-"):
            inner = commands(group[name], f"{prefix} {name}")
            found |= inner or {f"{prefix} {name}": f"{prefix} {name}".split()[1:]}
    return found


COMMANDS = commands()


def test_there_are_commands():
    assert {"headrace run", "headrace chat", "headrace pull"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_in_the_readme_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]):
    assert f"`{name}" in README
    app([*COMMANDS[name], "--help"], exit_on_error=False, result_action="return_value")
    shown = capsys.readouterr().out
    assert name in shown
    section = (DOCS / "commands.md").read_text().partition(f"## {name}\n")[2].partition("\n## ")[0]
    page = section + (DOCS / "knobs.md").read_text()
    flags = set(re.findall(r"--[a-z][\w.-]+", shown)) - {"--help", "--version", "--debug"}
    lacking = {flag for flag in flags if flag not in page and flag.replace(".no-", ".") not in page}
    assert not lacking, "docs/commands.md is old: run `make docs`"


@pytest.mark.model
def test_the_readme_example_runs(default_model: Path, capsys: pytest.CaptureFixture[str]):
    assert default_model.exists()
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) > 20


@pytest.mark.model
def test_the_example_of_an_answer_of_a_given_form_runs(
    default_model: Path, capsys: pytest.CaptureFixture[str]
):
    assert default_model.exists()
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "structured.md").read_text(), re.DOTALL)
    exec(compile(example, "structured.md", "exec"), {})
    assert isinstance(json.loads(capsys.readouterr().out)["year"], int)
