"""Budgets are kept at least loss, unreachable ones refused with what can be reached; recipes say what was picked."""

from itertools import pairwise, product
from pathlib import Path

import pytest

import headrace
from headrace.base.errors import Refused
from headrace.base.json_file import read_json
from headrace.optimize.budget import BUDGET, Budget, Pace, choose, shown
from headrace.optimize.calibrate import Calibration
from headrace.optimize.losses import Group, Loss, Sensitivity, read
from headrace.optimize.passes.rtn import Rtn
from headrace.optimize.recipe import Choice, Recipe
from headrace.optimize.sensitivity import folder_for
from headrace.optimize.work import folder_of
from tests.optimize import small

N = 1024
BITS = {"w4a16_g64": 4.25, "w4a16_g32_asym": 4.625, "w8a16": 8.0, "none": 16.0}


def group(name: str, scale: float, weights: int = N) -> Group:
    kls = {"w4a16_g64": 0.04, "w4a16_g32_asym": 0.02, "w8a16": 0.0001, "none": 0.0}
    losses = {s: Loss(int(BITS[s] * weights / 8), kl * scale, kl * scale / 10) for s, kl in kls.items()}
    return Group((f"model.layers.0.{name}",), weights, losses)


FOUND = Sensitivity("m", 512, 1.0, tuple(group(f"g{n}", 0.3 * (n + 1), N * (1 + n % 3)) for n in range(5)))
BASE = Recipe(passes=(Rtn(),))
PACE = Pace(1.0, lambda scheme, weights, size: size / 1e4 + (0.01 if scheme == "w4a16_g64" else 0), "h200")


def every(pace: Pace | None = None) -> list[tuple[float, float]]:
    """(bits, or ms, loss) of all ways."""
    found = []
    for names in product(BITS, repeat=len(FOUND.groups)):
        losses = [each.losses[name] for each, name in zip(FOUND.groups, names, strict=True)]
        cost = sum(loss.bytes for loss in losses) * 8 / FOUND.weights
        if pace is not None:
            each = zip(names, FOUND.groups, losses, strict=True)
            cost = pace.rest + sum(pace.of(name, one.weights, loss.bytes) for name, one, loss in each)
        found.append((cost, sum(loss.kl for loss in losses)))
    return found


@pytest.mark.parametrize("bits", [4.25, 4.5, 5, 6.3, 9])
def test_bits_are_kept_at_least_loss(bits: float):
    chosen = choose(FOUND, Budget(bits=bits), BASE)
    assert chosen.taken.bits <= bits
    assert chosen.taken.kl == pytest.approx(min(kl for cost, kl in every() if cost <= bits))
    assert chosen.taken.ms is None


@pytest.mark.parametrize("most", [0.001, 0.03, 0.1])
def test_a_kl_is_kept_at_least_size(most: float):
    chosen = choose(FOUND, Budget(kl=most), BASE)
    assert chosen.taken.kl <= most
    assert chosen.taken.bits == pytest.approx(min(bits for bits, kl in every() if kl <= most))


@pytest.mark.parametrize("most", [1.7, 1.9, 2.4])
def test_a_latency_is_kept_at_least_loss(most: float):
    chosen = choose(FOUND, Budget(ms=most), BASE, PACE)
    assert chosen.taken.ms is not None
    assert chosen.taken.ms <= most
    assert chosen.taken.kl == pytest.approx(min(kl for ms, kl in every(PACE) if ms <= most))


def test_the_frontier_falls():
    chosen = choose(FOUND, Budget(bits=5), BASE, PACE)
    assert all(a.bits < b.bits and a.kl > b.kl for a, b in pairwise(chosen.frontier))
    assert chosen.frontier[0].bits == pytest.approx(4.25)
    assert chosen.frontier[-1].kl == 0
    rows = shown(chosen, 5)
    assert chosen.taken in rows
    assert list(chosen.uniform) == ["w4a16_g64", "w4a16_g32_asym", "w8a16"]
    assert chosen.uniform["w8a16"].bits == 8
    assert chosen.uniform["w8a16"].kl == pytest.approx(0.0001 * 0.3 * 15)
    assert len(rows) <= 6
    assert rows == sorted(rows, key=lambda spot: spot.bits)


@pytest.mark.parametrize(
    ("budget", "pace", "message", "hint"),
    [
        (Budget(bits=4.2), None, r"4.2 bits per weight cannot be reached.* 4.25 is the least", "--target-bits 4.25"),
        (Budget(ms=1.2), PACE, r"1.2 ms per token cannot be reached on h200.*of which 1 go", "--max-latency-ms 1."),
        (Budget(bits=16), None, "kept by the model as it is, with 16 bits", "--scheme"),
        (Budget(ms=30), PACE, "kept by the model as it is", "--scheme"),
        (Budget(kl=1e-9), None, "lets no layer be rounded: the least that one costs is 3e-05", "--max-kl"),
        (Budget(ms=2), None, "needs a device", "--device"),
    ],
)  # fmt: skip
def test_budgets_that_make_no_sense(budget: Budget, pace: Pace | None, message: str, hint: str):
    with pytest.raises(Refused, match=message) as refused:
        choose(FOUND, budget, BASE, pace)
    assert hint in str(refused.value.hint)


def test_without_leaving_layers_alone_a_kl_may_be_out_of_reach():
    coarse = FOUND.only(["w4a16_g64", "w8a16"])
    with pytest.raises(Refused, match=r"with these schemes 0\.00045 is the least"):
        choose(coarse, Budget(kl=1e-4), BASE)


@pytest.mark.parametrize("given", [{}, {"bits": 5, "kl": 0.1}, {"bits": 0}, {"kl": float("nan")}, {"ms": -1}])
def test_not_one_budget_or_none_that_is_a_number(given: dict):
    with pytest.raises(Refused):
        Budget(**given)


def test_the_recipe_says_what_was_picked_and_keeps_what_was_said():
    base = Recipe(None, (Rtn(),), (("lm_head", Choice("w8a16")),))
    chosen = choose(FOUND, Budget(bits=6), base)
    said = dict(chosen.recipe.layers)
    assert chosen.recipe.layers[-1] == ("lm_head", Choice("w8a16"))
    for scheme, each in zip(chosen.taken.schemes, FOUND.groups, strict=True):
        assert said.get(each.names[0], Choice(chosen.recipe.scheme or "")).scheme == scheme
    assert Recipe.parse(chosen.recipe.to_yaml()) == chosen.recipe


def test_what_the_pass_cannot_make_is_rounded_plainly():
    found = Sensitivity("m", 512, 1.0, (Group(("a.b",), N, {"sparse24": Loss(900, 0.1, 0.0)}),))
    made = choose(found, Budget(bits=8), Recipe.parse({"passes": ["gptq"]})).recipe
    assert made.scheme == "none"
    assert made.layers == (("a.b", Choice("sparse24", Rtn())),)


@pytest.mark.parametrize(
    ("bits", "schemes", "dtype"), [(7, ["w4a16_g32", "w8a16"], "auto"), (12, ["w8a16", "none"], "bfloat16")]
)
def test_from_python(tmp_path: Path, text: Path, bits: float, schemes: list[str], dtype: str):
    """Also where some layers stay as they are: these count with the bits that they have."""
    model = small.model(tmp_path / "m", num_hidden_layers=2)
    outcome = headrace.optimize(
        model, tmp_path / "out", target_bits=bits, recipe={"passes": ["rtn"], "dtype": dtype},
        calibration=Calibration(4, 24, 0, (str(text),)), sensitivity_tokens=256, schemes=schemes,
    )  # fmt: skip
    assert {each.scheme for each in outcome.layers[:-1]} == set(schemes)
    assert read(tmp_path / "out").groups
    taken = read_json(tmp_path / "out" / BUDGET)["taken"]
    assert outcome.bits == pytest.approx(taken["bits"])
    assert bits - 4 < taken["bits"] <= bits
    assert not folder_of(folder_for(tmp_path / "out")).exists()


def test_a_budget_and_a_scheme_are_too_much(tmp_path: Path, model: Path):
    with pytest.raises(Refused, match="not both"):
        headrace.optimize(model, tmp_path / "other", target_bits=7, scheme="w8a16")
