"""Every file of headrace/models, found by its name, against transformers; and how build() refuses."""

from types import ModuleType
from typing import Any

import pytest
import torch

from headrace import models
from headrace.base.discover import modules
from headrace.base.errors import BadCheckpoint, Refused, UnknownName
from headrace.nn.step import Whole
from tests.models.reference import MAX_LEN, agree, ours, theirs

FILES = list(modules(models))
KINDS = [(module, kind) for module in FILES for kind in module.HANDLES]
NEEDED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "rms_norm_eps",
    "max_position_embeddings",
)


@pytest.mark.parametrize("module", FILES, ids=lambda module: module.__name__)
def test_a_model_file_keeps_the_contract(module: ModuleType):
    assert module.HANDLES
    assert all(isinstance(kind, str) for kind in module.HANDLES)
    assert all(isinstance(name, str) for pair in module.RENAME.items() for name in pair)
    assert module.TINY["model_type"] in module.HANDLES
    assert callable(module.build)


def test_no_two_files_handle_the_same_type():
    assert len(set(models.handled())) == len(models.handled()) == len(KINDS)


@pytest.mark.parametrize(("module", "kind"), KINDS)
def test_equals_transformers(module: ModuleType, kind: str):
    agree(module.TINY | {"model_type": kind})


@pytest.mark.parametrize(("module", "kind"), KINDS)
def test_other_head_counts_and_tying(module: ModuleType, kind: str):
    tied = not module.TINY["tie_word_embeddings"]
    agree(
        module.TINY
        | {
            "model_type": kind,
            "tie_word_embeddings": tied,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
        }
    )


@pytest.mark.parametrize(("module", "kind"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_and_what_moves_from_meta(module: ModuleType, kind: str, dtype: torch.dtype):
    config = module.TINY | {"model_type": kind}
    with torch.device("meta"):
        model = models.build(config, MAX_LEN)
    model.to(dtype).to_empty(device="cpu")
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not any(p.requires_grad for p in model.parameters())
    direct = models.build(config, MAX_LEN)
    assert dict(model.named_buffers()).keys() == dict(direct.named_buffers()).keys()
    for (_, moved), (_, made) in zip(model.named_buffers(), direct.named_buffers(), strict=True):
        assert moved.dtype == torch.float32
        assert torch.equal(moved, made)


@pytest.mark.parametrize(("module", "kind"), KINDS)
def test_bfloat16_is_near_transformers(module: ModuleType, kind: str):
    config = module.TINY | {"model_type": kind}
    reference = theirs(config).to(torch.bfloat16)
    model = ours(config, reference).to(torch.bfloat16)
    ids = torch.arange(30)
    with torch.no_grad():
        hidden = model(Whole(ids))
        found, wanted = model.logits(hidden), reference(ids[None]).logits[0].float()
    assert hidden.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert (found - wanted).abs().mean() < 0.1 * wanted.std()


@pytest.mark.parametrize(("module", "kind"), KINDS)
@pytest.mark.parametrize("key", NEEDED)
def test_a_missing_key_is_named(module: ModuleType, kind: str, key: str):
    config = module.TINY | {"model_type": kind}
    del config[key]
    with pytest.raises(BadCheckpoint, match=f"no {key}"):
        models.build(config, MAX_LEN)


@pytest.mark.parametrize("value", [0, -3, 2.5, "48", True, float("nan"), float("inf"), [48]])
@pytest.mark.parametrize(("module", "kind"), KINDS)
def test_a_senseless_size_is_named(module: ModuleType, kind: str, value: Any):
    with pytest.raises(BadCheckpoint, match="hidden_size"):
        models.build(module.TINY | {"model_type": kind, "hidden_size": value}, MAX_LEN)


def test_an_unknown_type_lists_the_known_ones():
    with pytest.raises(UnknownName, match="lama9") as caught:
        models.build({"model_type": "lama9"}, MAX_LEN)
    assert all(kind in caught.value.hint for kind in models.handled())


@pytest.mark.parametrize("kind", [None, 7])
def test_no_type_is_a_bad_checkpoint(kind: Any):
    with pytest.raises(BadCheckpoint, match="model_type"):
        models.build({"model_type": kind}, MAX_LEN)


JUNK = [None, 0, -1, 3, 0.5, 10**30, float("nan"), "x", "linear", True, [], [{}], {}, {"rope_type": []}]


def refused(config: dict[str, Any]) -> bool:
    """Whether build() refuses with a message; any other exception than a refusal is the test's failure."""
    try:
        with torch.device("meta"):
            models.build(config, 8)
    except Refused as fault:
        return bool(fault.message)
    return False


@pytest.mark.parametrize(("module", "kind"), KINDS)
def test_damaged_values_build_or_are_refused(module: ModuleType, kind: str):
    """Nothing hangs, nothing asks for impossible memory, nothing but a refusal is raised."""
    keys = [*module.TINY, "layer_types", "rope_freq_factors", "partial_rotary_factor", "attention_bias"]
    config = module.TINY | {"model_type": kind}
    assert sum(refused(config | {key: value}) for key in keys for value in JUNK) > 100


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "yarn"])
def test_damaged_rope_scalings_build_or_are_refused(kind: str):
    llama = next(module for module in FILES if "llama" in module.HANDLES)
    good = {"rope_type": kind, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    good |= {"original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0}
    good |= {"mscale_all_dim": 1.0, "attention_factor": None, "truncate": True}
    assert not refused(llama.TINY | {"rope_scaling": good})
    values = [*JUNK, 1.0, 5e-324, 1e308]
    found = {
        key: sum(refused(llama.TINY | {"rope_scaling": good | {key: v}}) for v in values) for key in good
    }
    assert found["factor"] > 8
    assert found["rope_type"] > 3
