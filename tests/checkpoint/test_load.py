"""Whatever a checkpoint is kept in, the model ends up with the same weights; what does not fit is named."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.base.errors import BadCheckpoint
from headrace.checkpoint import load as loading
from headrace.checkpoint.config import read_config
from headrace.checkpoint.gguf import Gguf
from headrace.checkpoint.load import Source, dummy, load, load_cache_scales, open_source
from headrace.checkpoint.save import save
from headrace.kernels import int8
from headrace.models import build
from headrace.models.gemma import TINY as GEMMA
from headrace.models.qwen import TINY as QWEN
from headrace.nn.decoder import Decoder
from headrace.nn.step import Whole
from tests.checkpoint.files import TINY, model


def empty(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> Decoder:
    """Every weight is not-a-number: what load forgets is seen."""
    built = build(config, 64).to(dtype)
    for _, tensor in built.sources():
        tensor.fill_(float("nan"))
    return built


def weights(built: Decoder) -> dict[str, torch.Tensor]:
    return dict(built.named_parameters())


def rewrite(folder: Path, change: Any) -> None:
    """Apply `change` to the dict of tensors in a folder."""
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    "config", [TINY, QWEN, GEMMA, GEMMA | {"model_type": "gemma3_text"}], ids=lambda c: c["model_type"]
)
@pytest.mark.parametrize("largest", [1 << 40, 9000], ids=["single", "sharded"])
def test_what_was_saved_is_loaded(tmp_path: Path, config: dict[str, Any], largest: int):
    one, other = model(config, seed=3), empty(config)
    save(tmp_path / "m", one.sources(), config, largest=largest)
    assert (tmp_path / "m" / "model.safetensors").exists() == (largest > 9000)
    load(other, open_source(tmp_path / "m"))
    for name, tensor in weights(other).items():
        assert torch.equal(tensor, weights(one)[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_converts_to_the_dtype_of_the_model(tiny: Path, dtype: torch.dtype):
    built = empty(TINY, dtype)
    load(built, open_source(tiny))
    for name, tensor in weights(model(TINY)).items():
        assert torch.equal(weights(built)[name], tensor.to(dtype)), name


def test_progress_counts_every_byte_once(tiny: Path):
    seen: list[tuple[int, int]] = []
    load(built := empty(TINY), open_source(tiny), lambda done, total: seen.append((done, total)))
    size = sum(tensor.nbytes for tensor in weights(built).values())
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)


def test_one_file_of_another_name(tiny: Path):
    (tiny / "model.safetensors").rename(tiny / "weights.safetensors")
    load(empty(TINY), open_source(tiny))
    load(empty(TINY), open_source(tiny / "weights.safetensors"))


def test_a_tied_model_leaves_the_head_alone(tiny: Path):
    built = empty(TINY | {"tie_word_embeddings": True})
    load(built, open_source(tiny))
    assert all(tensor.isfinite().all() for tensor in weights(built).values())


def test_an_untied_model_misses_its_head(tiny: Path):
    rewrite(tiny, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(BadCheckpoint, match=r"lacks 1 of the tensors the model needs: lm_head\.weight"):
        load(empty(TINY), open_source(tiny))


def test_tensors_that_everybody_computes_are_ignored(tiny: Path):
    rewrite(
        tiny, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    )
    load(empty(TINY), open_source(tiny))


def scaled(folder: Path, **scales: torch.Tensor) -> Decoder:
    rewrite(folder, lambda t: t.update({f"model.layers.1.self_attn.{n}": x for n, x in scales.items()}))
    built = empty(read_config(folder))
    load(built, open_source(folder))  # which leaves them alone
    load_cache_scales(built.named_attentions(), open_source(folder))
    return built


def test_scales_of_cached_keys_and_values_are_found(tiny: Path):
    layers = scaled(tiny, k_scale=torch.tensor(0.25), v_scale=torch.tensor([3.0])).attentions
    assert [(layer.k_scale, layer.v_scale) for layer in layers[:2]] == [(1.0, 1.0), (0.25, 3.0)]


@pytest.mark.parametrize("scale", [torch.tensor(0.0), torch.tensor(float("nan")), torch.ones(2)])
def test_a_scale_is_one_positive_number(tiny: Path, scale: torch.Tensor):
    with pytest.raises(
        BadCheckpoint, match=r"layers\.1\.self_attn\.k_scale is .* expected one positive number"
    ):
        scaled(tiny, k_scale=scale)


def test_leftovers_and_gaps_are_named(tiny: Path):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.0.self_attn.k_proj.weight"]
        tensors["model.layers.0.self_attn.k_proj.weight_packed"] = torch.ones(1)

    rewrite(tiny, change)
    with pytest.raises(BadCheckpoint) as caught:
        load(empty(TINY), open_source(tiny))
    assert (
        "lacks 1 of the tensors the model needs: model.layers.0.self_attn.k_proj.weight"
        in caught.value.message
    )
    assert (
        "has 1 tensors the model does not know: model.layers.0.self_attn.k_proj.weight_packed"
        in caught.value.message
    )


def test_long_lists_are_cut_and_sorted_by_layer(tmp_path: Path):
    deep = TINY | {"num_hidden_layers": 12}
    save(tmp_path / "m", model(TINY).sources(), TINY)
    with pytest.raises(BadCheckpoint, match=r"lacks 90 .*: model\.layers\.2\.input.*, and 85 more"):
        load(empty(deep), open_source(tmp_path / "m"))


def test_another_shape_is_named_before_anything_is_filled(tiny: Path):
    built = empty(TINY | {"intermediate_size": 80})
    with pytest.raises(
        BadCheckpoint, match=r"gate_proj\.weight has shape \[96, 64\]; .* asks for \[80, 64\]"
    ):
        load(built, open_source(tiny))
    assert all(tensor.isnan().all() for tensor in weights(built).values())


def test_weights_in_whole_numbers_are_no_weights(tiny: Path):
    rewrite(tiny, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    with pytest.raises(BadCheckpoint, match=r"model\.norm\.weight is of type I8"):
        load(empty(TINY), open_source(tiny))


def test_dummy_weights_depend_on_the_seed_alone():
    one, same, other = model(TINY, 1), model(TINY, 1), model(TINY, 2)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(same)[name])
        assert not torch.equal(tensor, weights(other)[name])
        assert tensor.isfinite().all()
    assert one.norm.weight.mean() == pytest.approx(1, abs=0.05)
    half = model(TINY, dtype=torch.bfloat16)
    dummy(half, 1)
    assert half.embed_tokens.weight.float().std() == pytest.approx(64**-0.5, rel=0.1)


def test_damaged_in_any_place_it_is_refused_or_read(tiny: Path):
    """Cut at many lengths; then with bytes of the header changed. Never anything but BadCheckpoint."""
    file, built = tiny / "model.safetensors", empty(TINY)
    data, rng = file.read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(data[:8], "little")
    cuts = [*range(0, header, 101), header, header + 1, len(data) // 2, len(data) - 1]
    for size in cuts:
        file.write_bytes(data[:size])
        with pytest.raises(BadCheckpoint):
            load(built, open_source(tiny))
    refused = 0
    for _ in range(300):
        broken = bytearray(data)
        for at in rng.integers(0, header, rng.integers(1, 4)):
            broken[at] = rng.integers(0, 256)
        file.write_bytes(broken)
        try:
            load(built, open_source(tiny))
        except BadCheckpoint:
            refused += 1
    assert refused > 100


@pytest.mark.model
def test_the_default_model_is_whole_and_knows_its_capitals(default_model: Path):
    path = default_model
    config = read_config(path)
    built = empty(config)
    load(built, open_source(path))
    for name, tensor in built.sources():
        assert tensor.isfinite().all(), name
        assert 0.02 < tensor.std() < 2, name
    vocabulary = Gguf(path).metadata["tokenizer.ggml.tokens"]
    ids = [
        vocabulary.index(token) for token in ("The", "\u0120capital", "\u0120of", "\u0120France", "\u0120is")
    ]
    with torch.no_grad():
        logits = built.logits(built(Whole(torch.tensor(ids))))
    assert vocabulary[int(logits[-1].argmax())] == "\u0120Paris"


# -- weights that are made into something else on the way in --------------------------------------------------


class Watched:
    """A source that notes which thread reads what. The first two who read a matrix wait for each other, if asked to."""

    def __init__(self, source: Source, readers: int = 1, broken: str = ""):
        self.path = source.path
        self.names, self.shape, self.packed = source.names, source.shape, source.packed
        self._source, self._broken = source, broken
        self._meet = threading.Barrier(readers)
        self.threads: set[str] = set()
        self.inner: set[int] = set()

    def read(self, name: str, into: torch.Tensor | None = None) -> torch.Tensor:
        if name == self._broken:
            raise BadCheckpoint(f"{name} cannot be read")
        if (me := threading.current_thread().name) not in self.threads and len(self.shape(name)) == 2:
            self.threads.add(me)
            self.inner.add(torch.get_num_threads())
            self._meet.wait(120)
        return self._source.read(name, into)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


needs_int8 = pytest.mark.skipif(int8.missing() is not None, reason="no 8-bit products on this processor")


def prepacking(tied: bool) -> Decoder:
    with torch.device("meta"):
        built = build(TINY | {"tie_word_embeddings": tied}, 64)
    built.allocate(torch.float32, "cpu", prepacks=True)
    return built


@needs_int8
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("in_flight", "readers"), [(1 << 28, 4), (2 * 4 * 192 * 64, 2), (1, 1)])
def test_weights_are_prepacked_by_several_threads(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, four_threads: None, in_flight: int, readers: int, tied: bool
):
    monkeypatch.setattr(loading, "IN_FLIGHT", in_flight)
    built, plain, seen = (
        prepacking(tied),
        empty(TINY | {"tie_word_embeddings": tied}),
        list[tuple[int, int]](),
    )
    source = Watched(open_source(tiny), readers)
    load(built, source, lambda done, total: seen.append((done, total)))
    assert (len(source.threads), source.inner, torch.get_num_threads()) == (readers, {4 // readers}, 4)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0
    load(plain, open_source(tiny))
    for one in (built, plain):
        one.prepack()
    step = Whole(torch.tensor([1, 5, 2, 8]))
    assert torch.equal(built.logits(built(step)), plain.logits(plain(step)))


@needs_int8
def test_what_cannot_be_read_by_a_thread_is_said(tiny: Path, four_threads: None):
    broken = Watched(open_source(tiny), broken="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(BadCheckpoint, match=r"1\.mlp\.up_proj\.weight cannot be read"):
        load(prepacking(tied=False), broken)
    assert torch.get_num_threads() == 4
