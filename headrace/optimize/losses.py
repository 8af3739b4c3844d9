"""What rounding a layer alone to a scheme costs the model: measured numbers, and the file they are kept in."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, ValidationError, convert

from headrace.base.errors import BadCheckpoint, Refused
from headrace.base.json_file import read_json

FILE = "sensitivity.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Loss:
    """Of a layer in one scheme: bytes, scales included; mean KL in nats of the model's predictions from its own when
    nothing else is rounded, and that mean's standard error over windows."""

    bytes: Annotated[int, Meta(ge=0, lt=1 << 53)]
    kl: Annotated[float, Meta(ge=0)]
    error: float

    def __post_init__(self) -> None:
        """Raises ValueError for a number that cannot be."""
        if not isfinite(self.kl):
            raise ValueError(f"{self} cannot be")


@dataclass(frozen=True, slots=True)
class Group:
    """Projections that get one scheme, because they read the same inputs and run as one product.

    names    in checkpoints
    weights  how many numbers
    losses   by scheme, "none" for staying as they are among them
    """

    names: Annotated[tuple[str, ...], Meta(min_length=1)]
    weights: Annotated[int, Meta(ge=1)]
    losses: Annotated[Mapping[str, Loss], Meta(min_length=1)]

    @property
    def label(self) -> str:
        """All names as one: model.layers.0.self_attn.q_proj+k_proj+v_proj."""
        first, *others = self.names
        return "+".join([first, *(name.rpartition(".")[2] for name in others)])


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Of all groups of the blocks, in order. tokens: predicted, for each number; seconds: that it took."""

    model: str
    tokens: int
    seconds: float
    groups: Annotated[tuple[Group, ...], Meta(min_length=1)]

    @property
    def weights(self) -> int:
        """Of all groups."""
        return sum(group.weights for group in self.groups)

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": FORMAT, **asdict(self)}

    def table(self) -> dict[str, dict[str, float]]:
        """Group -> scheme -> loss, without what stays as it is."""
        return {
            group.label: {name: loss.kl for name, loss in group.losses.items() if name != "none"}
            for group in self.groups
        }

    def only(self, schemes: Sequence[str]) -> "Sensitivity":
        """With these schemes alone. Raises Refused for one that was not measured."""
        known = dict.fromkeys(name for group in self.groups for name in group.losses)
        for name in schemes:
            if name not in known:
                raise Refused(
                    f"{name} was not measured; {', '.join(known)} were",
                    param="schemes",
                    hint="measure again: leave --sensitivity out",
                )
        if set(schemes) <= {"none"}:
            raise Refused("there is no scheme to choose", param="schemes")
        groups = []
        for group in self.groups:
            losses = {name: group.losses[name] for name in group.losses if name in schemes}
            groups.append(Group(group.names, group.weights, losses or {"none": group.losses["none"]}))
        return Sensitivity(self.model, self.tokens, self.seconds, tuple(groups))


def read(path: Path) -> Sensitivity:
    """From a file that a search wrote, or the folder of its result. Raises Refused where it is not one."""
    file = path / FILE if path.is_dir() else path
    try:
        if not file.is_file():
            raise OSError
        found = read_json(file)
        if found["format"] != FORMAT:
            raise Refused(f"{file} was written by another version", param="sensitivity", hint="measure again")
        return convert(found, Sensitivity)
    except (BadCheckpoint, OSError, KeyError, ValidationError) as fault:
        raise Refused(
            f"{file} holds no measured sensitivity",
            param="sensitivity",
            hint=f"give the {FILE} that a search wrote, or the folder of its result",
        ) from fault
