"""What is measured is what rounding one layer does; a killed measurement goes on; what cannot be is refused."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.base.errors import Refused
from headrace.optimize.losses import Sensitivity, read
from headrace.optimize.passes.rtn import Rtn
from headrace.optimize.recipe import Choice, Recipe
from headrace.optimize.run import run
from headrace.optimize.sensitivity import STEPS, WINDOW, _kl, folder_for, measure, study
from headrace.optimize.work import folder_of
from tests import tiny
from tests.optimize import small

SCHEMES = ["w4a16_g32", "w8a8"]
TOKENS = 3 * WINDOW


@pytest.fixture(scope="module")
def base(text: Path) -> Recipe:
    made = small.recipe(text)
    return Recipe(None, made.passes, (), made.calibration, made.dtype)


@pytest.fixture(scope="module")
def found(model: Path, base: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Sensitivity:
    out = tmp_path_factory.mktemp("sensitivity") / "out"
    return measure(study(str(model), out, base, schemes=SCHEMES, tokens=TOKENS))


def kl(base: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    p, q = (torch.log_softmax(each.double(), 1) for each in (base, other))
    return (p.exp() * (p - q)).sum(1)


def test_each_layer_of_each_block_has_a_loss_in_each_scheme(found: Sensitivity):
    assert len(found.groups) == 3 * 4
    assert found.groups[0].label == "model.layers.0.self_attn.q_proj+k_proj+v_proj"
    for group in found.groups:
        assert group.losses["none"].kl == 0
        assert group.losses["none"].bytes == group.weights * 4  # the tiny model is in float32
        assert all(group.losses[name].kl > 0 for name in SCHEMES)
        assert group.losses["w8a8"].kl < group.losses["w4a16_g32"].kl
    assert found.tokens == TOKENS


@pytest.mark.parametrize(("group", "scheme"), [(4, "w4a16_g32"), (7, "w8a8"), (10, "w4a16_g32")])
def test_it_is_the_loss_of_the_model_with_this_layer_rounded(
    found: Sensitivity, model: Path, base: Recipe, tmp_path: Path, group: int, scheme: str
):
    planned = study(str(model), tmp_path / "other", base, schemes=SCHEMES, tokens=TOKENS)
    layers = tuple((name, Choice(scheme)) for name in found.groups[group].names)
    texts = planned.job.recipe.calibration
    run(str(model), str(tmp_path / "out"), Recipe("none", (Rtn(steps=STEPS),), layers, texts, "float32"))
    from headrace.engine.start import load_model, look

    config = tiny.config(tmp_path / "out", **{"model.quantization": "checkpoint"})
    rounded = load_model(config, look(config))
    plain = tiny.decoder(model)
    assert planned.job.ids_ST is not None
    windows = planned.job.ids_ST.tolist()
    wanted = [kl(tiny.logits(plain, ids), tiny.logits(rounded, ids)).mean() for ids in windows]
    assert found.groups[group].losses[scheme].kl == pytest.approx(float(sum(wanted)) / len(wanted), rel=1e-3)


class Killed(Exception):
    pass


@pytest.mark.parametrize("where", ["block 2", "block 3", "comparing"])
def test_killed_it_goes_on_and_finds_the_same(
    found: Sensitivity, model: Path, base: Recipe, tmp_path: Path, where: str
):
    planned = study(str(model), tmp_path / "out", base, schemes=SCHEMES, tokens=TOKENS)
    ticks = 0

    def kill(what: str, done: float, total: float) -> None:
        nonlocal ticks
        ticks += where in what
        if ticks == 5:
            raise Killed

    with pytest.raises(Killed):
        measure(planned, report=kill)
    told: list[str] = []
    again = measure(planned, report=lambda what, done, total: told.append(what))
    assert again.groups == found.groups
    assert not any("block 1 of" in what for what in told)
    told.clear()
    assert measure(planned, report=lambda what, done, total: told.append(what)).groups == found.groups
    assert not told  # measured once
    with pytest.raises(Refused, match="unfinished work with another schemes and layers"):
        measure(study(str(model), tmp_path / "out", base, schemes=SCHEMES[:1], tokens=TOKENS))
    assert folder_of(folder_for(tmp_path / "out")).is_dir()


def test_a_full_disk_is_said_also_where_the_work_begins(
    model: Path, base: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    planned = study(str(model), tmp_path / "out", base, schemes=SCHEMES, tokens=TOKENS)
    for place in ("headrace.optimize.work.write_json", "headrace.optimize.work.Hidden.write"):
        with monkeypatch.context() as disk:
            disk.setattr(place, full)
            with pytest.raises(Refused, match="no room left"):
                measure(planned)


def test_a_turned_model_is_measured_turned(model: Path, base: Recipe, found: Sensitivity, tmp_path: Path):
    turned = Recipe.parse({**base.as_object(), "passes": ["rotation", "gptq"]})
    other = measure(study(str(model), tmp_path / "out", turned, schemes=SCHEMES[:1], tokens=TOKENS))
    pairs = zip(other.groups, found.groups, strict=True)
    assert all(a.losses["w4a16_g32"].kl != b.losses["w4a16_g32"].kl for a, b in pairs)
    assert all(group.losses["w4a16_g32"].kl < 1 for group in other.groups)


def test_layers_that_the_recipe_names_are_left_out(model: Path, base: Recipe, tmp_path: Path):
    named = Recipe.parse({**base.as_object(), "layers": {"*.down_proj": "w8a16", "lm_head": "w8a16"}})
    planned = study(str(model), tmp_path / "out", named, schemes=SCHEMES, tokens=TOKENS)
    assert len(planned.places) == 9
    assert not any("down_proj" in name for place in planned.places for name in place.names)


def test_a_scheme_is_left_out_where_it_does_not_fit(model: Path, base: Recipe, tmp_path: Path):
    planned = study(str(model), tmp_path / "out", base, schemes=["w4a16_g64", "w8a16"], tokens=TOKENS)
    down = [trial.scheme.name for trial in planned.trials if trial.place.number == 3]  # 96 columns
    assert set(down) == {"w8a16"}
    with pytest.raises(Refused, match="w4a16 fits none of the layers: groups of 128"):
        study(str(model), tmp_path / "out", base, schemes=["w4a16", "w8a16"], tokens=TOKENS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 100}, "100 tokens are too few"),
        ({"schemes": ["none"]}, "no scheme to choose"),
        ({"schemes": ["q4_0"]}, "no format for q4_0"),
        ({"schemes": ["w3"]}, "w3"),
    ],
)
def test_what_cannot_be(model: Path, base: Recipe, tmp_path: Path, changes: dict, message: str):
    with pytest.raises(Refused, match=message):
        study(str(model), tmp_path / "out", base, **changes)


def test_small_divergences_are_exact_in_float32():
    torch.manual_seed(0)
    z = torch.randn(8, 1000) * 4
    for size in (1e-3, 1e-1, 3.0):
        other = z + size * torch.randn_like(z)
        got = _kl(torch.softmax(z, 1), other - z)
        wanted = kl(z.double(), z.double() + (other - z).double())
        torch.testing.assert_close(got, wanted, rtol=2e-4, atol=0)


def test_the_file_says_all(found: Sensitivity, tmp_path: Path):
    (tmp_path / "sensitivity.json").write_text(json.dumps(found.as_object()))
    assert read(tmp_path) == found
    assert set(found.only(["w8a8"]).groups[0].losses) == {"w8a8"}
    with pytest.raises(Refused, match="no scheme to choose"):
        found.only(["none"])
    with pytest.raises(Refused, match="fp8 was not measured; none, w4a16_g32, w8a8 were"):
        found.only(["fp8"])
    loss = {"none": {"bytes": 8, "kl": 0, "error": 0}}
    group: dict[str, Any] = {"names": ["a.b"], "weights": 4, "losses": loss}
    said = {"format": 1, "model": "m", "tokens": 9, "seconds": 1, "groups": [group]}
    (tmp_path / "sensitivity.json").write_text(json.dumps(said))
    assert read(tmp_path).weights == 4
    for change in (
        {"weights": 0},
        {"losses": {}},
        {"losses": {"none": {**loss["none"], "kl": float("nan")}}},
        None,
    ):
        groups = [] if change is None else [group | change]
        (tmp_path / "sensitivity.json").write_text(json.dumps(said | {"groups": groups}))
        with pytest.raises(Refused, match="holds no measured sensitivity"):
            read(tmp_path)
    with pytest.raises(Refused, match="holds no measured sensitivity"):
        read(tmp_path / "none.json")
