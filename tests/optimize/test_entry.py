"""`headrace.optimize(...)` is a call, whatever of the package was imported before."""

import subprocess
import sys
from pathlib import Path

import pytest

import headrace
from headrace.base.errors import Refused
from headrace.optimize.calibrate import Calibration
from headrace.optimize.entry import made_of, recipe_of
from headrace.optimize.recipe import Recipe
from tests.optimize import small


def test_it_makes_a_folder(tmp_path: Path, model: Path, text: Path):
    texts = Calibration(4, 24, 0, (str(text),))
    outcome = headrace.optimize(
        model, tmp_path / "out", scheme="w4a16_g32", algorithm="awq,gptq", calibration=texts
    )
    assert [each.name for each in outcome.recipe.passes] == ["awq", "gptq"]
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert outcome.as_object()["tokens"] == 96


def test_a_recipe_in_any_form(tmp_path: Path, model: Path):
    recipe = small.recipe(None, scheme="w8a16")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert all(made_of(given) == recipe for given in (recipe, recipe.as_object(), tmp_path / "recipe.yaml"))
    assert headrace.optimize(model, tmp_path / "out", recipe=recipe).recipe == recipe


def test_a_recipe_and_a_scheme_are_too_much(tmp_path: Path, model: Path):
    with pytest.raises(Refused, match="not both"):
        headrace.optimize(model, tmp_path / "out", recipe=Recipe(), scheme="w8a8")


@pytest.mark.parametrize(
    ("scheme", "samples", "expected"),
    [(None, 4, "gptq"), ("w8a8", 4, "gptq"), ("nvfp4", 4, "rtn"), ("w4a16", 0, "rtn")],
)
def test_the_best_that_can_is_chosen(scheme: str | None, samples: int, expected: str):
    with pytest.raises(Refused, match="unknown quantization scheme"):
        recipe_of("nonsense", None)
    assert recipe_of(scheme, None, Calibration(samples, 24)).rounding.name == expected


def test_it_is_a_call_after_a_file_of_it_was_imported_and_loads_no_torch_before_it_is_called():
    code = (
        "import sys, headrace.optimize.search\n"
        "assert callable(headrace.optimize)\n"
        "try: headrace.optimize.nonsense\n"
        "except AttributeError as fault: print(fault)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "no attribute 'nonsense'" in done.stdout
