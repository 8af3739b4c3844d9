"""`headrace.optimize(...)` is a call, whatever of the package was imported before."""

import subprocess
import sys
from pathlib import Path

import pytest

import headrace
from headrace.base.errors import Refused
from headrace.optimize.calibrate import Calibration
from headrace.optimize.entry import recipe_of
from headrace.optimize.recipe import Recipe
from tests.optimize import small

CALIBRATION = {"samples": 4, "tokens": 24}


def test_it_makes_a_folder(tmp_path: Path, model: Path, text: Path):
    texts = Calibration(4, 24, 0, (str(text),))
    outcome = headrace.optimize(
        model, tmp_path / "out", scheme="w4a16_g32", algorithm="awq,gptq", calibration=texts
    )
    assert [each.name for each in outcome.recipe.passes] == ["awq", "gptq"]
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert outcome.as_object()["tokens"] == 96


@pytest.mark.parametrize("kind", ["recipe", "object", "file"])
def test_a_recipe_in_any_form(tmp_path: Path, model: Path, kind: str):
    recipe = small.recipe(None, scheme="w8a16")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    given = {"recipe": recipe, "object": recipe.as_object(), "file": tmp_path / "recipe.yaml"}[kind]
    assert headrace.optimize(model, tmp_path / "out", recipe=given).recipe == recipe


def test_a_recipe_and_a_scheme_are_too_much(tmp_path: Path, model: Path):
    with pytest.raises(Refused, match="not both"):
        headrace.optimize(model, tmp_path / "out", recipe=Recipe(), scheme="w8a8")


@pytest.mark.parametrize(
    ("scheme", "samples", "expected"),
    [
        (None, 4, "gptq"),
        ("w8a8", 4, "gptq"),
        ("nvfp4", 4, "rtn"),
        ("w4a16", 0, "rtn"),
        ("nonsense", 4, "gptq"),
    ],
)
def test_the_best_that_can_is_chosen(scheme: str | None, samples: int, expected: str):
    if scheme == "nonsense":
        with pytest.raises(Refused, match="unknown quantization scheme"):
            recipe_of(scheme, None)
        return
    assert recipe_of(scheme, None, Calibration(samples, 24)).rounding.name == expected


def test_importing_loads_no_torch_and_both_names_are_calls():
    code = (
        "import sys, headrace.optimize\n"
        "assert 'torch' not in sys.modules\n"
        "import headrace.optimize.recipe\n"
        "assert callable(headrace.optimize) and callable(headrace.optimize.optimize)\n"
        "try: headrace.optimize.nonsense\n"
        "except AttributeError as fault: print(fault)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "no attribute 'nonsense'" in done.stdout
