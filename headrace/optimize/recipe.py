"""What is to be done to a model: a scheme for each layer, passes in order, texts to calibrate with.

docs/optimize.md has it as YAML.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from headrace.base.errors import Refused, UnknownName
from headrace.base.text_file import read_text
from headrace.nn.decoder import Decoder
from headrace.optimize import passes
from headrace.optimize.calibrate import Calibration
from headrace.optimize.passes import ORDER, Change, Pass, Rounding, Turn, rank
from headrace.quant.export import HEAD, written
from headrace.quant.scheme import Scheme
from headrace.quant.schemes import known, scheme_named

NONE = "none"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
NO_YAML = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError)
"""What the library raises for texts that are none; the last three for tags with values that are not theirs."""
LARGEST = 1 << 22  # characters of a recipe: one with a line for every layer of a large model has a tenth


@dataclass(frozen=True)
class Choice:
    """What a layer gets: the name of a scheme or "none", and what rounds it where that is another pass."""

    scheme: str
    rounding: Rounding | None = None


@dataclass(frozen=True)
class Assigned:
    """What one projection gets. `scheme` None: it stays as it is. `why` is for people."""

    scheme: Scheme | None
    rounding: Rounding
    why: str


@dataclass(frozen=True)
class Recipe:
    """scheme   of every linear layer in the blocks; None: w4a16 in the largest groups that divide all
    layers   exceptions in order, by name or pattern (*, ?): the last that matches holds
    dtype    of scales and of what stays as it is
    """

    scheme: str | None = None
    passes: tuple[Pass, ...] = field(default_factory=lambda: (passes.make("rtn", {}),))
    layers: tuple[tuple[str, Choice], ...] = ()
    calibration: Calibration = field(default_factory=Calibration)
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Raises Refused for passes in an order that makes no sense, and for names that are not known."""
        for scheme in (self.scheme, *(choice.scheme for _, choice in self.layers)):
            if scheme not in (None, NONE):
                written(scheme_named(scheme))
        if self.dtype not in ("auto", *DTYPES):
            raise UnknownName.among("dtype", self.dtype, ["auto", *DTYPES], param="dtype")
        _check_order(self.passes)
        every = [*self.passes, *(choice.rounding for _, choice in self.layers if choice.rounding is not None)]
        needy = [
            each.name
            for each in every
            if isinstance(each, Change) or (isinstance(each, Rounding) and each.needs)
        ]
        if needy and not self.calibration.samples:
            raise Refused(
                f"{needy[0]} needs calibration, and there are no samples",
                param="samples",
                hint="leave --samples out, or take rtn alone",
            )

    @classmethod
    def parse(cls, given: str | Mapping[str, Any]) -> "Recipe":
        """From YAML, or the object that it holds. Raises Refused naming what is not understood."""
        if isinstance(given, str):
            given = _loaded(given)
        _check_keys(given, list(READ), "key of a recipe", "recipe")
        return cls(**{key: READ[key](value, key) for key, value in given.items() if value is not None})

    @classmethod
    def read(cls, file: str | Path) -> "Recipe":
        """From a YAML file. Raises Refused where it cannot be read, and what `parse` does."""
        return cls.parse(
            read_text(file, "recipe", "give a YAML file; docs/optimize.md says what it may hold")
        )

    def as_object(self) -> dict[str, Any]:
        """What `parse` takes, with every option of every pass."""
        calibration = asdict(self.calibration)
        return {
            "scheme": self.scheme,
            "passes": [{each.name: passes.options_of(each)} for each in self.passes],
            "layers": {name: _said(choice) for name, choice in self.layers},
            "calibration": calibration | {"texts": list(self.calibration.texts)},
            "dtype": self.dtype,
        }

    def to_yaml(self) -> str:
        """What `parse` takes, as text."""
        return yaml.safe_dump(self.as_object(), sort_keys=False, allow_unicode=True)

    @property
    def turn(self) -> Turn | None:
        """The pass that turns the whole model."""
        return next((each for each in self.passes if isinstance(each, Turn)), None)

    @property
    def changes(self) -> tuple[Change, ...]:
        """The passes that change blocks."""
        return tuple(each for each in self.passes if isinstance(each, Change))

    @property
    def rounds_head(self) -> bool:
        """Whether the output head is named, and is not to stay as it is."""
        named = [choice.scheme for pattern, choice in self.layers if pattern == HEAD]
        return bool(named) and named[-1] != NONE

    @property
    def rounding(self) -> Rounding:
        """The pass that rounds what the recipe names no other for."""
        found = self.passes[-1]
        assert isinstance(found, Rounding)
        return found

    def settled(self, model: Decoder) -> "Recipe":
        """With a scheme: where there is none, w4a16 in the largest groups that divide all layers of the blocks."""
        if self.scheme is not None:
            return self
        schemes = [known()[name] for name in ("w4a16", "w4a16_g64", "w4a16_g32", "w4a16_row", "w8a16")]
        fitting = (one for one in schemes if not any(one.fits(*shape) for _, shape in _projections(model)))
        return replace(self, scheme=next(fitting).name)

    def plan(self, model: Decoder) -> dict[str, Assigned]:
        """What each projection of a model (which may lie on the meta device) gets, by its name in checkpoints.

        The output head is among them where the recipe names it, tied or not, or where it is a layer of its own.
        Raises Refused for a pattern that matches nothing, and where a scheme does not fit a layer or its pass.
        """
        recipe = self.settled(model)
        shapes = dict(_projections(model)) | {HEAD: (model.shape.vocab, model.shape.hidden)}
        for pattern, _ in recipe.layers:
            if not any(_matches(pattern, name) for name in shapes):
                raise _no_such_layer(pattern, list(shapes))
        found = {name: recipe._assigned(name) for name in shapes}
        for name, assigned in found.items():
            _check_fits(name, shapes[name], assigned, model)
            if assigned.scheme is not None and assigned.scheme.spec.static and not recipe.calibration.samples:
                raise Refused(
                    f"{assigned.scheme.name} needs calibration, and there are no samples",
                    param="samples",
                    hint=f"leave --samples out, or take {assigned.scheme.name.removesuffix('_static')}",
                )
        for names, _ in model.linears():
            if len({found[name].rounding for name in names if found[name].scheme is not None}) > 1:
                raise Refused(
                    f"{', '.join(names)} read the same inputs and must be rounded by one pass", param="layers"
                )
        for change in recipe.changes:
            recipe._check_change(change, found)
        return found

    def _assigned(self, name: str) -> Assigned:
        matching = [(pattern, choice) for pattern, choice in self.layers if _matches(pattern, name)]
        if matching:
            pattern, choice = matching[-1]
            scheme = None if choice.scheme == NONE else scheme_named(choice.scheme)
            why = "the recipe names it" if pattern == name else f"the recipe's {pattern!r}"
            return Assigned(scheme, choice.rounding or self.rounding, why)
        if name == HEAD:
            return Assigned(None, self.rounding, "an output head stays as it is unless a recipe names it")
        if self.scheme in (None, NONE):
            return Assigned(None, self.rounding, "the recipe's scheme is none")
        return Assigned(scheme_named(self.scheme or ""), self.rounding, "the recipe's scheme")

    def _check_change(self, change: Change, found: Mapping[str, Assigned]) -> None:
        """A pass that says of every scheme there is that it does nothing for it would be ignored: that is an error."""
        fits = getattr(change, "fits", None)
        schemes = {each.scheme for each in found.values() if each.scheme is not None}
        if fits is not None and schemes and all(reasons := [fits(scheme) for scheme in schemes]):
            raise Refused(f"{change.name} would change nothing: {reasons[0]}", param="passes")


def _projections(model: Decoder) -> list[tuple[str, tuple[int, int]]]:
    """(name in checkpoints, shape) of all in the blocks."""
    return [
        (name, (rows, layer.inputs))
        for names, layer in model.linears()
        if layer is not model.lm_head
        for name, rows in zip(names, layer.outputs, strict=True)
    ]


def _check_fits(name: str, shape: tuple[int, int], assigned: Assigned, model: Decoder) -> None:
    scheme = assigned.scheme
    if scheme is None:
        return
    if reason := scheme.fits(*shape):
        bits = "w4a16" if scheme.spec.bits == 4 else "w8a16"
        every = [*_projections(model), (name, shape)]
        asym = "" if scheme.spec.symmetric else "_asym"
        names = [f"{bits}{group}{asym}" for group in ("", "_g128", "_g64", "_g32", "_row")]
        others = [known()[other] for other in names if other in known()]
        better = (other.name for other in others if not any(other.fits(*each) for _, each in every))
        hint = (
            f"use {found}, which fits all layers" if (found := next(better, None)) else "use another scheme"
        )
        raise Refused(f"{scheme.name} cannot pack {name}: {reason}", param="scheme", hint=hint)
    if reason := assigned.rounding.fits(scheme):
        raise Refused(f"{name}: {reason}", param="passes", hint="take another pass, or another scheme")


def _matches(pattern: str, name: str) -> bool:
    """The output head has to be named; it is not meant by `*`."""
    return pattern == HEAD if name == HEAD else fnmatchcase(name, pattern)


def _no_such_layer(pattern: str, names: list[str]) -> Refused:
    if "embed" in pattern:
        return Refused(
            f"{pattern!r} in the recipe: an embedding stays as it is",
            param="layers",
            hint="transformers loads none that is quantized; `dtype` of the recipe says in what it is written",
        )
    near = get_close_matches(pattern, names, n=1)
    kinds = sorted({name.rpartition(".")[2] for name in names})
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnknownName(
        f"{pattern!r} in the recipe matches no layer of this model",
        param="layers",
        hint=f"{hint}layers are {names[0]} to {names[-2]}, ending in {', '.join(kinds)}; * stands for anything",
    )


def _check_order(given: Sequence[Pass]) -> None:
    ranks = [rank(each) for each in given]
    names = [each.name for each in given]
    last = len(ORDER) - 1
    rounding = [name for name, place in zip(names, ranks, strict=True) if place == last]
    if not rounding:
        raise Refused(
            f"passes {', '.join(names) or '(none)'} round nothing",
            param="passes",
            hint=f"add one that {ORDER[last][1]}, at the end: {names[0] + ',' if names else ''}gptq or rtn",
        )
    if ranks != sorted(ranks) or len(rounding) > 1 or ranks.count(0) > 1 or len(set(names)) < len(names):
        raise Refused(
            f"passes {', '.join(names)} make no sense in this order",
            param="passes",
            hint="at most one that turns the whole model, those that change blocks, and one that rounds at the end",
        )


# -- from YAML ------------------------------------------------------------------------------------------------


def _loaded(text: str) -> Mapping[str, Any]:
    if len(text) > LARGEST:
        raise Refused(f"the recipe has {len(text)} characters, too many to be one", param="recipe")
    try:
        found: object = yaml.safe_load(text)
    except NO_YAML as fault:
        raise Refused(f"the recipe is no YAML: {fault}", param="recipe") from fault
    return _mapping({} if found is None else found, "recipe")


def _check_keys(given: Mapping[Any, object], known: list[str], what: str, param: str) -> None:
    for key in given:
        if key not in known:
            raise UnknownName.among(what, str(key), known, param=param)


def _word(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise Refused(f"{where} in the recipe has {value!r}; a name was expected", param=where)
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise Refused(f"{where} in the recipe is {value!r}; a list was expected", param=where)
    return list(value)


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Refused(f"{where} is {str(value)[:80]!r}; an object (name: value) was expected", param=where)
    return cast("Mapping[str, Any]", value)


def _pass(given: object) -> Pass:
    """A name, or {name: options}."""
    if isinstance(given, Mapping) and len(given) == 1:
        ((name, options),) = given.items()
        return passes.make(_word(name, "passes"), _mapping({} if options is None else options, "passes"))
    if isinstance(given, Mapping):
        raise Refused(f"passes has {dict(given)!r}; one name with its options was expected", param="passes")
    return passes.make(_word(given, "passes"), {})


def _choice(given: object) -> Choice:
    """A scheme's name, or {scheme: name, rounding: pass}."""
    if not isinstance(given, Mapping):
        return Choice(_word(given, "layers"))
    _check_keys(given, ["scheme", "rounding"], "key of a layer", "layers")
    scheme = _word(given.get("scheme"), "layers")
    if given.get("rounding") is None:
        return Choice(scheme)
    found = _pass(given["rounding"])
    if not isinstance(found, Rounding):
        raise Refused(f"{found.name} rounds nothing", param="layers", hint="gptq, rtn, ... do")
    return Choice(scheme, found)


def _said(choice: Choice) -> Any:
    if choice.rounding is None:
        return choice.scheme
    return {
        "scheme": choice.scheme, "rounding": {choice.rounding.name: passes.options_of(choice.rounding)},
    }  # fmt: skip


def _calibration(value: object, where: str) -> Calibration:
    given = _mapping(value, where)
    _check_keys(given, [each.name for each in fields(Calibration)], "key of calibration", where)
    if "texts" in given:
        words = tuple(_word(each, "texts") for each in _list(given["texts"], "texts"))
        given = {**given, "texts": words}
    return Calibration(**given)


def _passes(value: object, where: str) -> tuple[Pass, ...]:
    return tuple(_pass(each) for each in _list(value, where))


def _layers(value: object, where: str) -> tuple[tuple[str, Choice], ...]:
    return tuple((_word(name, where), _choice(each)) for name, each in _mapping(value, where).items())


READ: dict[str, Callable[[object, str], Any]] = {
    "scheme": _word, "passes": _passes, "layers": _layers, "calibration": _calibration, "dtype": _word,
}  # fmt: skip
"""What makes of what stands under each key of a recipe what Recipe holds."""
