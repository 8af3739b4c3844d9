"""What files say about themselves, and words we do without."""

import ast
import re
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


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def said(path: Path) -> str:
    """The code of a file with its docstrings blanked: they may name what we do without."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node, clean=False)
            text = text.replace(doc, "") if doc else text
    return re.sub(r"(?m)(?:^|\s)#.*$", "", text)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_file_opens_with_one_sentence(path: Path):
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert doc, "no docstring"
    first = doc.split("\n\n")[0].split("\n")[0] if "\n\n" in doc else doc
    assert first.rstrip()[-1] in ".:", f"{first!r} is not a sentence"
    assert len(doc.splitlines()[0]) > 10


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_classes_are_named_for_what_they_are(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            words = re.findall(r"[A-Z][a-z0-9]*", node.name)
            assert not EMPTY_WORDS & set(words), f"class {node.name}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_forbidden_is_used(path: Path):
    code = said(path)
    found = [
        f"{pattern}: {why}" for pattern, why in FORBIDDEN.items() if re.search(pattern, code, re.MULTILINE)
    ]
    assert not found


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_who_catches_everything_raises_or_says_why(path: Path):
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name):
            everything = node.type.id in {"Exception", "BaseException"}
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert not everything or raises or "#" in text.splitlines()[node.lineno - 1]


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_nothing_names_somebodys_machine(path: Path):
    assert not (found := re.findall(SOMEBODYS_MACHINE, path.read_text())), found


def test_no_file_names_are_empty_words():
    assert not [name(p) for p in SOURCES if p.stem in {"utils", "util", "helpers", "misc", "common"}]


@pytest.mark.parametrize(
    "code", ["pickle.loads(x)", "torch.load(p)", "eval(s)", "  except:", "import transformers"]
)
def test_the_patterns_find_what_they_look_for(code: str):
    assert any(re.search(pattern, code, re.MULTILINE) for pattern in FORBIDDEN)
    assert not any(re.search(pattern, "model.eval()  retrieval(x)") for pattern in FORBIDDEN)
