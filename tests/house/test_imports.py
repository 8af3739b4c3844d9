"""Importing a part loads no more than the part needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "triton", "huggingface_hub")
LIGHT = ["headrace", "headrace.engine.scheduler", "headrace.base.config", "headrace.text", "headrace.cli"]


def loaded_by(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter holds after running `code`."""
    probe = f"import sys\n{code}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_import_loads_nothing_heavy(module: str):
    assert loaded_by(f"import {module}") == set()


def test_parameters_of_a_request_load_nothing_heavy():
    assert loaded_by("from headrace import SamplingParams") == set()


def test_threads_that_wait_do_not_hold_their_core():
    code = "import os, headrace; print(os.environ['GOMP_SPINCOUNT'])"
    env = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    for given, expected in [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")]:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env | given, capture_output=True, text=True
        )
        assert done.stdout.strip() == expected


def test_this_test_can_fail():
    assert "huggingface_hub" in loaded_by("import huggingface_hub")


def test_every_public_name_is_there():
    code = "import headrace\nfor name in headrace.__all__: getattr(headrace, name)\nassert dir(headrace)"
    assert "torch" in loaded_by(code)


def test_an_unknown_name_is_an_attribute_error():
    import headrace

    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        _ = headrace.LMM  # type: ignore[attr-defined]
