"""A whole run, from disk to disk: what it writes, what it survives, what it refuses."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.base.errors import BadCheckpoint, Refused
from headrace.base.hardware import Hardware
from headrace.checkpoint import shards
from headrace.checkpoint.load import open_source
from headrace.engine.start import load_model, look
from headrace.optimize.job import look as decide
from headrace.optimize.outcome import Outcome, read_report
from headrace.optimize.preflight import preflight
from headrace.optimize.recipe import Recipe
from headrace.optimize.run import execute, run
from headrace.optimize.work import Work, folder_of
from tests import tiny
from tests.optimize import small

IDS = list(range(5, 45))
RECIPES: dict[str, dict[str, Any]] = {
    "rtn": {},
    "gptq": {"passes": ["gptq"]},
    "awq": {"passes": ["awq", "gptq"]},
    "smoothquant": {"scheme": "w8a8", "passes": ["smoothquant", "rtn"]},
    "rotation": {"passes": ["rotation", "gptq"]},
    "sparse_fp8": {"scheme": "sparse24_fp8", "passes": ["sparsegpt"]},
    "wanda": {"scheme": "sparse24_fp8", "passes": ["wanda"]},
    "static": {"scheme": "fp8_static", "passes": ["gptq"]},
    "mixed": {
        "passes": ["gptq"],
        "layers": {"*.v_proj": "w8a16", "model.layers.1.*": "none", "*.down_proj": "w8a8", "lm_head": "w8a16"},
    },
    "head": {"layers": {"lm_head": {"scheme": "w4a16_g32", "rounding": "gptq"}}},
}  # fmt: skip


def made(model: Path, out: Path, recipe: Recipe, **settings: Any) -> Outcome:
    return run(str(model), str(out), recipe, **settings)


def logits(folder: Path) -> torch.Tensor:
    """As the engine has it: packed, where there is something packed."""
    quantized = "quantization_config" in json.loads((folder / "config.json").read_text())
    config = tiny.config(folder, quantization="checkpoint" if quantized else "none", dtype="float32")
    return tiny.logits(load_model(config, look(config)), IDS)


@pytest.fixture(scope="module")
def base(model: Path) -> torch.Tensor:
    return tiny.logits(tiny.decoder(model), IDS)


@pytest.mark.parametrize(
    ("name", "tied"),
    [*((name, False) for name in RECIPES), *((name, True) for name in ("rotation", "mixed", "head"))],
)
def test_what_is_written_runs_and_is_near(tmp_path: Path, text: Path, name: str, tied: bool):
    model = small.model(tmp_path / "m", tie_word_embeddings=tied)
    outcome = made(model, tmp_path / "out", small.recipe(text, **RECIPES[name]))
    base = tiny.logits(tiny.decoder(model), IDS)
    change = float((logits(tmp_path / "out") - base).norm() / base.norm())
    assert (
        0
        < change
        < {"w8a8": 0.1, "fp8_static": 0.25, "sparse24": 1.3, "sparse24_fp8": 1.3}.get(
            outcome.recipe.scheme or "", 0.7
        )
    )
    assert outcome.after == sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert outcome.tokens == 6 * 24
    schemes = {
        layer: "none" if one.scheme is None else one.scheme.name
        for layer, one in outcome.recipe.plan(tiny.decoder(model)).items()
    }
    if outcome.layers[-1].name != "lm_head":  # it is the embedding
        del schemes["lm_head"]
    assert {layer.name: layer.scheme for layer in outcome.layers} == schemes
    assert all(layer.bits == 32 and layer.error == 0 for layer in outcome.layers if layer.scheme == "none")
    found = read_report(tmp_path / "out")
    assert found is not None
    assert found[0] == replace(outcome, out=tmp_path / "out")
    assert not folder_of(tmp_path / "out").exists()
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["tie_word_embeddings"] == (tied and name not in ("rotation", "mixed", "head"))


def test_a_turned_model_computes_the_same(tmp_path: Path, model: Path, text: Path, base: torch.Tensor):
    made(model, tmp_path / "out", small.recipe(text, scheme="none", passes=["rotation", "rtn"]))
    torch.testing.assert_close(logits(tmp_path / "out"), base, rtol=1e-3, atol=1e-3)


def test_without_calibration(tmp_path: Path, model: Path, base: torch.Tensor):
    outcome = made(model, tmp_path / "out", small.recipe(None, scheme="w8a16"))
    assert outcome.tokens == 0
    assert float((logits(tmp_path / "out") - base).norm() / base.norm()) < 0.05
    assert all(0 < layer.error < 0.02 for layer in outcome.layers if layer.scheme != "none")


def test_gptq_sees_what_the_layers_before_give(tmp_path: Path, model: Path, text: Path):
    """What a layer's error is measured on are the inputs that it will have: those of rounded layers."""
    first = made(model, tmp_path / "a", small.recipe(text, passes=["gptq"]))
    alone = made(
        model,
        tmp_path / "b",
        small.recipe(text, passes=["gptq"], layers={"*": "none", "*.2.mlp.*": "w4a16_g32"}),
    )
    errors = {layer.name: layer.error for layer in first.layers}
    assert all(layer.error != errors[layer.name] for layer in alone.layers if layer.scheme != "none")


@pytest.mark.parametrize("changes", [{"passes": ["rotation", "rtn"]}, {"layers": {"lm_head": "w8a16"}}])
def test_a_tied_model_has_no_other_head(tmp_path: Path, text: Path, changes: dict[str, Any]):
    """Some checkpoints have an lm_head.weight that nobody reads."""
    model = small.model(tmp_path / "m", tie_word_embeddings=True)
    made(model, tmp_path / "plain", small.recipe(text, **changes))
    weights = load_file(model / "model.safetensors")
    save_file(
        {**weights, "lm_head.weight": torch.ones_like(weights["model.embed_tokens.weight"])},
        model / "model.safetensors",
    )
    made(model, tmp_path / "out", small.recipe(text, **changes))
    with_it, without = (small.hashes(tmp_path / at)["model.safetensors"] for at in ("out", "plain"))
    assert with_it == without


# -- interrupted ------------------------------------------------------------------------------------------------


class Stop(BaseException):
    """What the tests interrupt a run with."""


@pytest.mark.parametrize("name", ["awq", "mixed"])
def test_interrupted_anywhere_it_gives_the_same_files(
    tmp_path: Path, model: Path, text: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    recipe = small.recipe(text, **RECIPES[name])
    made(model, tmp_path / "whole", recipe)
    expected = small.hashes(tmp_path / "whole")
    write, note = shards.write, Work.note
    left = 0

    def after(step: Callable[..., Any]) -> Callable[..., Any]:
        def stopping(*words: Any, **settings: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Stop
            done = step(*words, **settings)
            left -= 1
            if left == 0:
                raise Stop
            return done

        return stopping

    monkeypatch.setattr("headrace.optimize.walk.write", after(write))
    monkeypatch.setattr(shards, "write", after(write))
    monkeypatch.setattr(Work, "note", after(note))
    runs = 0
    for place in range(1, 40):
        left = place
        try:
            outcome = made(model, tmp_path / "out", recipe)
        except Stop:
            runs += 1
            assert not (tmp_path / "out").exists()
            continue
        break
    assert runs > 8
    assert outcome.resumed
    assert small.hashes(tmp_path / "out") == expected
    assert not folder_of(tmp_path / "out").exists()


def test_killed_twice_it_gives_the_same_files(tmp_path: Path, model: Path, text: Path):
    """With kill -9, wherever it happens to be."""
    recipe = small.recipe(text, passes=["gptq"])
    made(model, tmp_path / "whole", recipe)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    code = (
        "import sys; from headrace.optimize.recipe import Recipe; from headrace.optimize.run import run\n"
        "run(sys.argv[1], sys.argv[2], Recipe.read(sys.argv[3]))"
    )
    words = [sys.executable, "-c", code, str(model), str(tmp_path / "out"), str(tmp_path / "recipe.yaml")]
    journal = folder_of(tmp_path / "out") / "journal.json"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for blocks in (0, 2):
        process = subprocess.Popen(words, env=environment, cwd=tmp_path)
        while process.poll() is None:
            if journal.is_file() and json.loads(journal.read_text())["blocks"] >= blocks:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    if not (tmp_path / "out").exists():
        made(model, tmp_path / "out", recipe)
    assert small.hashes(tmp_path / "out") == small.hashes(tmp_path / "whole")


def test_work_of_another_recipe_or_model_is_refused_and_fresh_begins_again(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
):
    model, recipe = small.model(tmp_path / "m"), small.recipe(text)
    monkeypatch.setattr(Work, "finish", lambda self: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        made(model, tmp_path / "out", recipe)
    monkeypatch.undo()
    with pytest.raises(Refused, match="another recipe"):
        made(model, tmp_path / "out", small.recipe(text, passes=["gptq"]))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 500.0}))
    with pytest.raises(Refused, match="another configuration"):  # what is done was computed with the old one
        made(model, tmp_path / "out", recipe)
    shutil.rmtree(model)
    small.model(tmp_path / "m", seed=1)
    with pytest.raises(Refused, match="another files of the model"):
        made(model, tmp_path / "out", recipe)
    assert not made(model, tmp_path / "out", recipe, fresh=True).resumed


def test_damaged_hidden_states_are_noticed(
    tmp_path: Path, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("headrace.optimize.walk.Walk._rest", lambda self: (_ for _ in ()).throw(Stop))
    recipe = small.recipe(text, layers={"lm_head": "w8a16"})
    with pytest.raises(Stop):
        made(model, tmp_path / "out", recipe)
    monkeypatch.undo()
    (hidden,) = folder_of(tmp_path / "out").glob("hidden-*")
    hidden.write_bytes(bytes(hidden.stat().st_size))
    with pytest.raises(Refused, match="is damaged"):
        made(model, tmp_path / "out", recipe)


def test_killed_after_the_result_had_moved_it_begins_again(
    tmp_path: Path, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        made(model, tmp_path / "out", small.recipe(text))
    monkeypatch.undo()
    expected = small.hashes(tmp_path / "out")
    with pytest.raises(Refused, match="exists already"):
        made(model, tmp_path / "out", small.recipe(text))
    shutil.rmtree(tmp_path / "out")
    made(model, tmp_path / "out", small.recipe(text))
    assert small.hashes(tmp_path / "out") == expected


# -- refused ----------------------------------------------------------------------------------------------------


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path, model: Path, text: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(Refused, match="exists already"):
        made(model, tmp_path / "out", small.recipe(text))
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("place", ["link", "m/..", "a\0b", "x" * 250])
def test_a_place_that_cannot_be_taken_in_the_end_is_refused_at_once(tmp_path: Path, model: Path, place: str):
    (tmp_path / "m").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "m")
    with pytest.raises(Refused, match=r"is a link|exists already|cannot be written"):
        made(model, tmp_path / place, small.recipe(None))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "m"]


def test_a_name_that_no_file_could_have_in_it_is_refused_at_once(tmp_path: Path, model: Path, text: Path):
    odd = tmp_path / os.fsdecode(b"odd\xff")
    shutil.copy(text, odd)
    with pytest.raises(Refused, match="is not UTF-8"):
        made(model, tmp_path / "out", small.recipe(odd))


def test_a_run_that_another_overtook_does_nothing(tmp_path: Path, model: Path):
    first, second = (decide(str(model), tmp_path / "out", small.recipe(None)) for _ in range(2))
    execute(first, preflight(first))
    with pytest.raises(Refused, match="exists already"):
        execute(second, preflight(second))
    assert list(folder_of(tmp_path / "out").iterdir()) == [folder_of(tmp_path / "out") / "lock"]


def test_an_empty_folder_is_taken(tmp_path: Path, model: Path):
    (tmp_path / "out").mkdir()
    made(model, tmp_path / "out", small.recipe(None))
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("place", ["headrace.optimize.walk.write", "headrace.checkpoint.shards.write"])
def test_a_full_disk_leaves_work_that_goes_on(
    tmp_path: Path, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    recipe, write, left = small.recipe(text), shards.write, 2

    def full(file: Path, entries: Any) -> None:
        nonlocal left
        left -= 1
        if left <= 0 or "result" in str(file):
            file.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        write(file, entries)

    monkeypatch.setattr(place, full)
    with pytest.raises(Refused, match="no room left") as caught:
        made(model, tmp_path / "out", recipe)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    made(model, tmp_path / "out", recipe)
    made(model, tmp_path / "whole", recipe)
    assert small.hashes(tmp_path / "out") == small.hashes(tmp_path / "whole")


@pytest.mark.parametrize(
    ("place", "found", "said"),
    [
        ("work.shutil.disk_usage", SimpleNamespace(free=1000), "1e-06 GB"),
        ("preflight.probe", Hardware(1, 1 << 30, 1 << 20), "of memory are needed; 0.00105 GB are free"),
    ],
)
def test_too_little_room_is_refused_before_any_work(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, place: str, found: Any, said: str
):
    monkeypatch.setattr(f"headrace.optimize.{place}", lambda *_: found)
    with pytest.raises(Refused, match=said):
        made(model, tmp_path / "out", small.recipe(None))
    assert not list(tmp_path.iterdir())


def test_what_else_is_refused_before_any_work(tmp_path: Path, model: Path, text: Path):
    for recipe, settings, said in (
        (small.recipe(text, tokens=300), {}, "this model reads 256 at most"),
        (small.recipe(text, samples=10_000), {}, "10000 are asked for"),
        (small.recipe(text), {"device": "abacus"}, "device 'abacus' is not known"),
        (small.recipe(text), {"device": "meta"}, "there is no device 'meta'"),
        (small.recipe(text), {"device": "cuda:99"}, "there is no device 'cuda:99'"),
        (small.recipe(text, scheme="w4a16"), {}, "groups of 128 do not divide 64"),
    ):
        with pytest.raises(Refused, match=said):
            made(model, tmp_path / "out", recipe, **settings)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_lacks_a_tensor_is_refused_before_any_work(tmp_path: Path, text: Path):
    model = small.model(tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(BadCheckpoint, match="lacks 9 of the tensors"):
        made(model, tmp_path / "out", small.recipe(text))
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("layer", ["model.layers.1.mlp.up_proj", "lm_head"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, text: Path, layer: str, calibrated: bool):
    model = small.model(tmp_path / "m")
    weights = load_file(model / "model.safetensors")
    weights[f"{layer}.weight"][3, 5] = float("nan")
    save_file(weights, model / "model.safetensors")
    recipe = small.recipe(text if calibrated else None, layers={"lm_head": "w8a16"})
    with pytest.raises(BadCheckpoint, match=f"{layer}: weights, or what goes into them, are not finite"):
        made(model, tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["model.embed_tokens", "model.norm", "model.layers.0.mlp.up_proj", "lm_head"]
)
def test_what_stays_as_it_is_must_be_finite_too(tmp_path: Path, name: str):
    """In the type that it is written in: a number may be too large for it."""
    model = small.model(tmp_path / "m")
    weights = load_file(model / "model.safetensors")
    weights[f"{name}.weight"].view(-1)[5] = 7e4
    save_file(weights, model / "model.safetensors")
    made(model, tmp_path / "wide", small.recipe(None, scheme="none", dtype="bfloat16"))
    with pytest.raises(BadCheckpoint, match=rf"{name}\.weight has numbers that are not finite in float16"):
        made(model, tmp_path / "out", small.recipe(None, scheme="none", dtype="float16"))
    assert not (tmp_path / "out").exists()


def test_weights_in_their_makers_own_form_do_not_count(tmp_path: Path, model: Path):
    copy = shutil.copytree(model, tmp_path / "m")
    shutil.copy(copy / "model.safetensors", copy / "consolidated.safetensors")
    outcome = made(copy, tmp_path / "out", small.recipe(None))
    assert outcome.before == (model / "model.safetensors").stat().st_size


def test_progress_is_told_and_never_goes_back(tmp_path: Path, model: Path, text: Path):
    told: list[tuple[str, float, float]] = []
    made(
        model,
        tmp_path / "out",
        small.recipe(text, passes=["awq", "gptq"]),
        progress=lambda *one: told.append(one),
    )
    done = [done for _, done, total in told if total]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(told[-1][2], rel=0.5)
    words = " ".join(what for what, _, _ in told)
    for expected in ("block 1 of 3: awq", "q, k, v, watching", "down, gptq", "running as rounded", "head"):
        assert expected in words


def test_a_quantized_head_keeps_rows_in_pieces(
    tmp_path: Path, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
):
    """The pieces are those of a head as a whole."""
    recipe = small.recipe(text, layers={"lm_head": "w4a16_g32_asym"}, passes=["gptq"])
    made(model, tmp_path / "whole", recipe)
    monkeypatch.setattr("headrace.optimize.resident.ROWS", 64)
    made(model, tmp_path / "pieces", recipe)
    whole, pieces = (open_source(tmp_path / at).read("lm_head.weight") for at in ("whole", "pieces"))
    torch.testing.assert_close(whole, pieces, rtol=0, atol=0.1)
    assert float((whole == pieces).float().mean()) > 0.97
