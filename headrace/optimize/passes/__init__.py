"""What a pass is, and how passes are found: one file each, by name, with a class called PASS.

A pass is a frozen dataclass; its fields are its options, each with a default. There are three kinds, told apart by what
they do, in the order in which a recipe has them: at most one Turn, any number of Changes, one Rounding.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from headrace.base.discover import module, names
from headrace.base.errors import Refused, UnknownName
from headrace.nn.linear import Linear
from headrace.optimize.inputs import Inputs, Need
from headrace.quant.scheme import Scheme

if TYPE_CHECKING:
    from headrace.checkpoint.source import Source
    from headrace.nn.decoder import Block, Decoder


@runtime_checkable
class Rounding(Protocol):
    """Makes a packed weight: rtn, gptq, wanda, sparsegpt.

    name    as in recipes
    needs   what of Inputs there must be beyond sums and peaks
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]]

    def fits(self, scheme: Scheme) -> str | None:
        """Why this pass cannot make that scheme; None where it can."""
        ...

    def pack(
        self, weight_NK: Tensor, scheme: Scheme, inputs: Inputs, dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        """A float32 weight of one projection (q, k and v come one by one) as `scheme.pack` would give it, but better.

        Scales, and numbers that are kept as they are, are of `dtype`, as `scheme.pack(weight.to(dtype))` has them;
        they are rounded to it before values are rounded by them. The weight is left as it is. The same in gives the
        same bits out. A weight of very many rows (an output head) may come in pieces.
        """
        ...


@runtime_checkable
class Change(Protocol):
    """Rewrites a block so that it computes the same in floats but rounds better: smoothquant, awq."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]]

    def change(
        self, block: "Block", inputs: Mapping[Linear, Inputs], schemes: Callable[[Linear], Scheme | None]
    ) -> None:
        """In place on a float32 block, whose function stays the same up to float rounding.

        `inputs` were seen before the change; they are collected again for what comes after. `schemes` says what a
        layer will be rounded to: the coarsest of its projections' schemes, None where all stay as they are.
        """
        ...


class Turned(Protocol):
    """What a Turn makes of a model's tensors."""

    def weight(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the checkpoint (by name, float32) as it is in the turned model (float32).

        Called in any order, for each once or more. The embedding and the head may come some rows at a time. A head
        that was tied comes as "lm_head.weight" with rows of the embedding.
        """
        ...


@runtime_checkable
class Turn(Protocol):
    """Rewrites the whole model as it is read: rotation. After it norms multiply by one and no head is tied."""

    name: ClassVar[str]

    def prepare(self, model: "Decoder", source: "Source") -> Turned:
        """What rewrites tensors. `model` is the untied model on the meta device.

        Here is the time to read what has to be known first (norm weights).
        """
        ...


Pass = Rounding | Change | Turn
ORDER: tuple[tuple[type, str], ...] = (
    (Turn, "turns the whole model"), (Change, "changes blocks"), (Rounding, "rounds weights"),
)  # fmt: skip
"""In the order in which a recipe has them, with what each does."""


def known() -> list[str]:
    """The names of all passes."""
    return names(sys.modules[__name__])


def rank(a_pass: Pass) -> int:
    """Its place in ORDER."""
    return next(place for place, (kind, _) in enumerate(ORDER) if isinstance(a_pass, kind))


def make(name: str, options: Mapping[str, Any]) -> Pass:
    """A pass with its options. Raises UnknownName for one that there is not, Refused for a wrong value."""
    kind = module(sys.modules[__name__], name, "pass").PASS
    defaults = {each.name: each.default for each in fields(kind) if each.init}
    for given, value in options.items():
        if given not in defaults:
            raise UnknownName.among(
                f"option of {name}", str(given), sorted(defaults), param=f"{name}.{given}"
            )
        if not _is_like(value, defaults[given]):
            wanted = {bool: "true or false", int: "a whole number", float: "a number"}
            expected = wanted.get(type(defaults[given]), "a word")
            raise Refused(f"{given} of {name} is {value!r}; expected {expected}", param=f"{name}.{given}")
    return cast("Pass", kind(**options))


def check_ranges(a_pass: Pass, **ranges: tuple[float, float]) -> None:
    """Raises Refused for an option that is not from the least to the largest value given for it."""
    for option, (least, most) in ranges.items():
        value = getattr(a_pass, option)
        if not least <= value <= most:
            raise Refused(
                f"{option} of {a_pass.name} is {value}; expected {least:g} to {most:g}",
                param=f"{a_pass.name}.{option}",
            )


def options_of(a_pass: Pass) -> dict[str, Any]:
    """All options of a pass, so that a recipe written from it says everything."""
    return {each.name: getattr(a_pass, each.name) for each in fields(cast("Any", a_pass)) if each.init}


def _is_like(value: object, default: object) -> bool:
    """Whether a value may stand where a default stands; whole numbers are numbers, truth values are not."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return isinstance(value, int | float if isinstance(default, float) else type(default))
