"""The project's rules, run one after the other: `python tests/house/check.py`, or `make check`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

TOOLS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("basedpyright", "--pythonpath", sys.executable),
    ("lint-imports",),
)


def sources() -> list[Path]:
    return sorted((ROOT / "headrace").rglob("*.py"))


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def functions(path: Path) -> Iterator[tuple[int, str]]:
    """(lines, path::name) of every function in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or 0) - node.lineno + 1, f"{path.relative_to(ROOT)}::{node.name}"


def sizes() -> str:
    """A table for a reviewer's eye: folders, longest files and functions. Nothing fails on it."""
    files = {path: lines(path) for path in sources()}
    folders: dict[str, int] = {}
    for path, count in files.items():
        parts = path.relative_to(ROOT / "headrace").parts
        folder = parts[0] if len(parts) > 1 else "."
        folders[folder] = folders.get(folder, 0) + count
    rows = ["lines by folder"]
    rows += [f"  {count:6}  {name}" for name, count in sorted(folders.items())]
    rows += [f"  {sum(files.values()):6}  in all", "longest files"]
    longest = sorted(files.items(), key=lambda item: -item[1])[:8]
    rows += [f"  {count:6}  {path.relative_to(ROOT)}" for path, count in longest]
    rows += ["longest functions"]
    found = sorted((f for path in files for f in functions(path)), reverse=True)[:8]
    return "\n".join(rows + [f"  {count:6}  {name}" for count, name in found])


def main() -> int:
    failed = []
    for tool in TOOLS:
        print("+", *tool, flush=True)
        if subprocess.run([str(BIN / tool[0]), *tool[1:]], cwd=ROOT).returncode:
            failed.append(tool[0])
    print(sizes())
    print("failed: " + ", ".join(failed) if failed else "all checks passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
