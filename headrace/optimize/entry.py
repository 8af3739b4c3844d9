"""`headrace.optimize(...)`: the optimizer as a function, for scripts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

from headrace.base.errors import Refused
from headrace.optimize import passes
from headrace.optimize.budget import Budget, beside, check, choose, forget
from headrace.optimize.calibrate import Calibration
from headrace.optimize.job import look
from headrace.optimize.outcome import Outcome
from headrace.optimize.passes.gptq import Gptq
from headrace.optimize.preflight import preflight
from headrace.optimize.recipe import Recipe
from headrace.optimize.run import execute, run
from headrace.optimize.sensitivity import TOKENS, measure, study
from headrace.optimize.walk import Report
from headrace.quant.schemes import known


def optimize(  # noqa: PLR0913 - all but two are settings with names
    model: str | PathLike[str],
    out: str | PathLike[str],
    *,
    scheme: str | None = None,
    algorithm: str | Sequence[str] | None = None,
    recipe: Recipe | Mapping[str, Any] | str | PathLike[str] | None = None,
    calibration: Calibration | None = None,
    target_bits: float | None = None,
    max_kl: float | None = None,
    schemes: Sequence[str] = (),
    sensitivity_tokens: int = TOKENS,
    device: str = "auto",
    fresh: bool = False,
    progress: Report | None = None,
) -> Outcome:
    """Make a cheaper model of `model` (a known name, a folder, a .gguf file, a repo id) in the new folder `out`.

    scheme       of the layers in the blocks: "w4a16_g64", "w8a8", "fp8", ...; None: w4a16 in the largest groups
    algorithm    names of passes in order, with commas or as a list: "gptq", "awq,gptq"; None: gptq, or rtn where it
                 cannot make the scheme
    recipe       instead of these two: a Recipe, the object of one, or the path of a YAML file
    calibration  what layers are watched with; Calibration(samples=0) for none
    target_bits  instead of a scheme: what rounding each layer costs is measured, and schemes are picked layer by layer
                 that have so many bits per weight at least loss
    max_kl       likewise: the least size of which so much mean KL from the model is foreseen; what it then is,
                 `headrace eval kl` measures (the command does so itself)
    schemes      to pick from, and sensitivity_tokens: read to measure each; sensitivity.py has the defaults
    device       where it is computed: "cpu", "cuda"; "auto" is a GPU where there is one

    Interrupted and called again, it goes on where it stood, unless `fresh`. Raises Refused for what cannot be done.
    """
    if recipe is not None and (scheme is not None or algorithm is not None):
        raise Refused("give a recipe, or scheme and algorithm, not both", param="recipe")
    made = made_of(recipe) if recipe is not None else recipe_of(scheme, algorithm, calibration)
    if calibration is not None:
        made = replace(made, calibration=calibration)
    if target_bits is not None or max_kl is not None:
        if made.scheme is not None:
            raise Refused("give a scheme or a budget, not both", param="scheme")
        budget = Budget(bits=target_bits, kl=max_kl)
        asked = study(str(model), str(out), made, schemes=schemes, tokens=sensitivity_tokens, device=device)
        check(asked, budget, made)
        chosen = choose(measure(asked, fresh, progress), budget, made)
        job = look(str(model), str(out), chosen.recipe, device)
        outcome = execute(job, preflight(job), fresh, progress, beside(chosen))
        forget(outcome.out)
        return outcome
    return run(str(model), str(out), made, device=device, fresh=fresh, progress=progress)


def made_of(given: Recipe | Mapping[str, Any] | str | PathLike[str]) -> Recipe:
    """A recipe from what stands for one."""
    if isinstance(given, Recipe):
        return given
    return Recipe.parse(given) if isinstance(given, Mapping) else Recipe.read(str(given))


def recipe_of(
    scheme: str | None, algorithm: str | Sequence[str] | None, calibration: Calibration | None = None
) -> Recipe:
    """From a scheme and the names of passes; what is left out is chosen so that it suits the rest."""
    calibration = calibration or Calibration()
    if algorithm is None:
        found = known().get(scheme or "")  # what there is not is said later, with the names of all
        takes = found is None or Gptq().fits(found) is None
        algorithm = "gptq" if calibration.samples and takes else "rtn"
    names = algorithm.split(",") if isinstance(algorithm, str) else list(algorithm)
    chosen = tuple(passes.make(name.strip(), {}) for name in names)
    return Recipe(scheme, chosen, (), calibration)
