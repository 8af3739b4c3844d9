"""What files say about themselves, and words we do without."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "headrace").rglob("*.py"))
TEXTS = [
    path
    for pattern in ("headrace/**/*.py", "tests/**/*.py", "docs/**/*", "*.md", "*.toml", "Makefile", ".ci/run")
    for path in sorted(ROOT.glob(pattern))
    if path.is_file() and path.suffix in {".py", ".md", ".toml", ".jinja", ""}
]

# In class names: words that say nothing about what a thing is.
EMPTY_WORDS = frozenset(
    {"Manager", "Handler", "Helper", "Util", "Utils", "Base", "Impl", "Mixin"}
    | {"Interface", "Context", "Info", "Data"}
)
# In the package: what runs code from a file, reads the environment instead of a knob, or hides an error.
FORBIDDEN = {
    r"\bpickle\b": "code from a file",
    r"\btorch\.load\(": "code from a file",
    r"(?<![.\w])eval\(": "code from text",
    r"(?<![.\w])exec\(": "code from text",
    r"\bexcept\s*:": "an error that nobody looked at",
    r"^\s*(?:import|from) transformers\b": "not a dependency",
    r"(?:TODO|FIXME|XXX)\b": "a note that belongs into an issue",
}
# Anywhere: a path that exists on one machine only. The brackets keep this file from finding itself.
SOMEBODYS_MACHINE = r"(?<![\w.:~-])/(?:w[o]rk|r[o]ot|h[o]me|U[s]ers|opt/[a-z]{2})/"


TREES = {path: ast.parse(path.read_text()) for path in SOURCES}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def classes_and_handlers() -> Iterator[tuple[Path, ast.ClassDef | ast.ExceptHandler]]:
    """Every class and every `except` of the package, with its file."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.ExceptHandler):
                yield path, node


def said(path: Path) -> str:
    """The code of a file with its docstrings blanked: they may name what we do without."""
    text = path.read_text()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node, clean=False)
            text = text.replace(doc, "") if doc else text
    return re.sub(r"(?m)(?:^|\s)#.*$", "", text)


def opens_with_one_sentence(tree: ast.Module) -> bool:
    doc = ast.get_docstring(tree) or ""
    first = doc.split("\n\n")[0].split("\n")[0] if "\n\n" in doc else doc
    return first.rstrip().endswith((".", ":")) and len(doc.splitlines()[0]) > 10


# A test per rule, not per file and rule: thousands of tests would take longer to be told of than to be run.


def test_a_file_opens_with_one_sentence():
    assert not [name(path) for path, tree in TREES.items() if not opens_with_one_sentence(tree)]


def test_classes_are_named_for_what_they_are():
    found = [
        (name(path), node.name) for path, node in classes_and_handlers() if isinstance(node, ast.ClassDef)
    ]
    assert not [one for one in found if EMPTY_WORDS & set(re.findall(r"[A-Z][a-z0-9]*", one[1]))]


def test_nothing_forbidden_is_used():
    codes = {name(path): said(path) for path in SOURCES}
    assert not [
        (file, pattern, why)
        for file, code in codes.items()
        for pattern, why in FORBIDDEN.items()
        if re.search(pattern, code, re.MULTILINE)
    ]


def test_who_catches_everything_raises_or_says_why():
    for path, node in classes_and_handlers():
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name):
            everything = node.type.id in {"Exception", "BaseException"}
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            why = "#" in path.read_text().splitlines()[node.lineno - 1]
            assert not everything or raises or why, f"{name(path)}, line {node.lineno}"


def test_nothing_names_somebodys_machine():
    found = {name(path): re.findall(SOMEBODYS_MACHINE, path.read_text()) for path in TEXTS}
    assert not {file: paths for file, paths in found.items() if paths}


def test_no_file_names_are_empty_words():
    assert not [name(p) for p in SOURCES if p.stem in {"utils", "util", "helpers", "misc", "common"}]


@pytest.mark.parametrize(
    "code", ["pickle.loads(x)", "torch.load(p)", "eval(s)", "  except:", "import transformers"]
)
def test_the_patterns_find_what_they_look_for(code: str):
    assert any(re.search(pattern, code, re.MULTILINE) for pattern in FORBIDDEN)
    assert not any(re.search(pattern, "model.eval()  retrieval(x)") for pattern in FORBIDDEN)
