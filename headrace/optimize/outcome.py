"""What an optimizer's run did, layer by layer."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace.optimize.recipe import Recipe


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

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Outcome:
    """model, path   what was asked for and the files it was; out: the folder that was written
    recipe           with everything said
    layers           in the order of the model
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
        return {
            "model": self.model,
            "path": str(self.path),
            "out": str(self.out),
            "recipe": self.recipe.as_object(),
            "layers": [layer.as_object() for layer in self.layers],
            "before": self.before,
            "after": self.after,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "resumed": self.resumed,
        }

    @property
    def bits(self) -> float:
        """Per weight of the layers in the list."""
        weights = sum(layer.after * 8 / layer.bits for layer in self.layers)
        return sum(layer.after for layer in self.layers) * 8 / weights if weights else 0.0
