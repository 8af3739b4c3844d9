"""What an optimizer's run did, layer by layer; it lies beside the weights, where evaluation adds what it measures."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace.base.errors import BadCheckpoint, Refused
from headrace.base.json_file import read_json
from headrace.optimize.recipe import Recipe
from headrace.quant.export import HEAD

REPORT = "report.json"
FORMAT = 1
"""Of report.json; changes when a name in it gets another meaning or goes."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One projection.

    scheme   "none" where it stayed as it was
    bits     per weight, scales and zero points included
    before, after    bytes, as the source has it and as it was written
    error    ||W'x' - Wx|| / ||Wx|| over sampled inputs, x' being x as the scheme rounds it; without calibration
             ||W' - W|| / ||W||; 0 where it stayed as it was
    seconds  that rounding took, what was shared by several projections on the first of them
    """

    name: str
    scheme: str
    rounding: str
    bits: float
    before: int
    after: int
    error: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """model, path   what was asked for and the files it was; out: the folder that was written
    recipe           with everything said
    layers           all linear ones, in the order of the model, rounded or not; the head where it is one
    before, after    bytes of all weights: of the source's files, and of what was written
    tokens           seen in calibration
    seconds          of work, pauses between interrupted runs left out
    resumed          the run was interrupted and went on
    """

    model: str
    path: Path
    out: Path
    recipe: Recipe
    layers: tuple[Layer, ...]
    before: int
    after: int
    tokens: int
    seconds: float
    resumed: bool

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        said = {"path": str(self.path), "out": str(self.out), "recipe": self.recipe.as_object()}
        return asdict(self) | said | {"layers": [asdict(layer) for layer in self.layers]}

    @property
    def bits(self) -> float:
        """Per weight of the blocks' linear layers, scales and those that stayed as they were included."""
        layers = [layer for layer in self.layers if layer.name != HEAD]
        weights = sum(layer.after * 8 / layer.bits for layer in layers)
        return sum(layer.after for layer in layers) * 8 / weights if weights else 0.0


def read_report(folder: Path) -> tuple[Outcome, dict[str, Any]] | None:
    """What a run that finished `folder` did, and its report, which may not say yet how good it is; None if it has none.

    The folder is taken for where the result is now, whatever it was called then.
    """
    try:
        found = read_json(folder / REPORT)
        said = found["outcome"]
        if found["format"] != FORMAT:
            return None
        layers = tuple(Layer(**each) for each in said["layers"])
        recipe = Recipe.parse(said["recipe"])
        kept = {name: said[name] for name in ("model", "before", "after", "tokens", "seconds", "resumed")}
        return Outcome(path=Path(said["path"]), out=folder, recipe=recipe, layers=layers, **kept), found
    except (OSError, BadCheckpoint, Refused, KeyError, TypeError, AttributeError):
        return None
