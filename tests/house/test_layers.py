"""Who may import whom, as declared in pyproject.toml and judged by import-linter."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = Path(sys.executable).with_name("lint-imports")


def test_layers_hold():
    if not TOOL.exists():
        pytest.skip("import-linter is not installed: pip install -e '.[dev]'")
    done = subprocess.run([TOOL, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_folder_has_its_layer():
    contract, *_ = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    placed = {name.strip(" ()") for layer in contract["layers"] for name in layer.split("|")}
    folders = {path.parent.name for path in (ROOT / "headrace").glob("*/__init__.py")}
    assert contract["exhaustive"]
    assert folders <= placed
