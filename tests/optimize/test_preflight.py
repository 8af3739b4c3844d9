"""What is said before any work is what comes true, as far as it can be."""

from pathlib import Path

import pytest

from headrace.checkpoint import shards
from headrace.checkpoint.export_gguf import export_gguf
from headrace.optimize.cost import staged
from headrace.optimize.job import blocks_of, look
from headrace.optimize.preflight import AS_IS, Preflight, preflight
from headrace.optimize.recipe import Recipe
from headrace.optimize.run import run
from tests.optimize import small


def ahead(model: Path, out: Path, recipe: Recipe) -> Preflight:
    return preflight(look(str(model), out, recipe))


@pytest.mark.parametrize(
    ("more", "tied"),
    [
        ({}, True), ({"scheme": "w8a8", "dtype": "bfloat16"}, False), ({"scheme": "w4a16_g32_asym"}, False),
        ({"scheme": "sparse24"}, True), ({"layers": {"lm_head": "w8a16", "model.layers.0.*": "none"}}, True),
        ({"layers": {"lm_head": "w8a16"}}, False), ({"passes": ["rotation", "rtn"]}, True),
    ],
)  # fmt: skip
def test_the_size_after_is_the_size_after(tmp_path: Path, text: Path, more: dict[str, object], tied: bool):
    base = small.model(tmp_path / "m", tie_word_embeddings=tied)
    recipe = small.recipe(text, **more)  # type: ignore[arg-type]
    said = ahead(base, tmp_path / "out", recipe)
    run(str(base), str(tmp_path / "out"), recipe)
    entries = shards.entries(tmp_path / "out" / "model.safetensors")
    shapes = sum(
        one.nbytes for one in entries if one.name.endswith("shape")
    )  # a few bytes that say the shape
    zeros = 0.02 if "asym" in (recipe.scheme or "") else 0  # are written in fewer bits than we keep them in
    assert said.after == pytest.approx(sum(one.nbytes for one in entries) - shapes, abs=1, rel=zeros)
    assert said.before == (base / "model.safetensors").stat().st_size
    assert {row.name for row in said.rows if row.becomes != AS_IS} == {
        name.rpartition(".")[0]
        for name in (one.name for one in entries)
        if name.endswith(("_scale", ".bitmask"))
    }


def test_every_layer_has_a_reason(tmp_path: Path, model: Path, text: Path):
    said = ahead(model, tmp_path / "out", small.recipe(text, layers={"*.down_proj": "w8a16"}))
    by_name = {row.name: row for row in said.rows}
    assert by_name["model.embed_tokens"].becomes == AS_IS
    assert "looked up" in by_name["model.embed_tokens"].why
    assert "unless a recipe names it" in by_name["lm_head"].why
    assert by_name["model.layers.0.mlp.down_proj"].why == "the recipe's '*.down_proj'"
    assert all(row.before > row.after for row in said.rows if row.becomes != AS_IS)
    assert said.cost.seconds > 0
    assert said.cost.memory > 1 << 20
    assert said.cost.disk > said.after
    assert not list(tmp_path.iterdir())


def test_notes_say_what_to_think_of(tmp_path: Path, model: Path, text: Path):
    mixed = ahead(model, tmp_path / "out", small.recipe(None, layers={"*.v_proj": "w8a16"}))
    assert any("vLLM wants one" in note for note in mixed.notes)
    assert any("without calibration" in note for note in mixed.notes)
    assert ahead(model, tmp_path / "out", small.recipe(text)).notes == ()
    run(str(model), str(tmp_path / "a"), small.recipe(None))
    again = ahead(tmp_path / "a", tmp_path / "b", small.recipe(text))
    assert any("quantized already" in note for note in again.notes)


def test_a_source_that_is_as_small_already(tmp_path: Path, model: Path):
    export_gguf(model, tmp_path / "m.gguf", "q8_0")
    same = ahead(
        tmp_path / "m.gguf", tmp_path / "out", small.recipe(None, scheme="w8a16_g32", dtype="float16")
    )
    assert any("have 8.50 bits per weight in the source and would have 8.50" in note for note in same.notes)
    less = ahead(tmp_path / "m.gguf", tmp_path / "out", small.recipe(None))
    assert not any("save next to nothing" in note for note in less.notes)


def test_layers_are_watched_one_by_one_where_there_are_hessians(tmp_path: Path, model: Path, text: Path):
    expected = {"rtn": [[0, 1, 2, 3]], "gptq": [[0], [1], [2], [3]]}
    for name, stages in expected.items():
        job = look(str(model), tmp_path / "out", small.recipe(text, passes=[name]))
        meta = job.build()
        assert staged(job, meta, blocks_of(meta)[0]) == stages
    job = look(str(model), tmp_path / "out", small.recipe(text, passes=["gptq"], layers={"*.o_proj": "none"}))
    meta = job.build()
    assert staged(job, meta, blocks_of(meta)[0]) == [[0], [2], [3]]


def test_a_head_that_is_rounded_was_the_embedding(tmp_path: Path):
    export_gguf(small.model(tmp_path / "m", tie_word_embeddings=True), tmp_path / "m.gguf", "q8_0")
    wanted = small.recipe(None, scheme="w8a16_g32", layers={"lm_head": "w8a16_g32"}, dtype="float16")
    said = ahead(tmp_path / "m.gguf", tmp_path / "out", wanted).notes
    assert any("have 8.50 bits per weight in the source and would have 8.50" in note for note in said)
