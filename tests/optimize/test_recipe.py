"""A recipe survives its own YAML, gives every layer a scheme, and says what it does not understand."""

from typing import Any

import pytest
import torch

from headrace import models
from headrace.base.errors import Refused, UnknownName
from headrace.nn.decoder import Decoder
from headrace.optimize.recipe import Recipe
from tests.optimize import small

Q = "model.layers.0.self_attn.q_proj"


def meta(**changes: Any) -> Decoder:
    with torch.device("meta"):
        return models.build({**small.SIZES, **changes}, 64)


def schemes(text: str, **changes: Any) -> dict[str, str | None]:
    plan = Recipe.parse(text).plan(meta(**changes))
    return {name: one.scheme.name if one.scheme else None for name, one in plan.items()}


FULL = """
scheme: w4a16_g32
passes: [rotation, awq, {gptq: {damp: 0.05}}]
layers:
  "*.down_proj": w8a16
  model.layers.1.*: none
  lm_head: {scheme: w8a16, rounding: {rtn: {steps: 3}}}
calibration: {samples: 4, tokens: 32, seed: 7, texts: [some.txt]}
dtype: float16
"""


@pytest.mark.parametrize("text", ["", FULL, "passes: [gptq]", "calibration: {samples: 0}\npasses: [rtn]"])
def test_it_survives_its_own_yaml(text: str):
    recipe = Recipe.parse(text)
    assert Recipe.parse(recipe.to_yaml()) == recipe
    assert Recipe.parse(recipe.as_object()) == recipe


def test_the_last_pattern_that_matches_holds():
    found = schemes(FULL)
    assert found[Q] == "w4a16_g32"
    assert found["model.layers.0.mlp.down_proj"] == "w8a16"
    assert found["model.layers.1.mlp.down_proj"] is None
    assert found["lm_head"] == "w8a16"
    plan = Recipe.parse(FULL).plan(meta())
    assert plan["lm_head"].rounding.name == "rtn"
    assert plan[Q].rounding.name == "gptq"
    assert plan["model.layers.1.mlp.down_proj"].why == "the recipe's 'model.layers.1.*'"


def test_the_head_stays_unless_it_is_named():
    assert schemes("scheme: w8a8")["lm_head"] is None
    assert schemes("scheme: w8a8\nlayers: {lm_head: w8a16}", tie_word_embeddings=True)["lm_head"] == "w8a16"
    assert schemes("layers: {'*': w8a16}")["lm_head"] is None, "a pattern does not name it"
    assert Recipe.parse("layers: {lm_head: w8a16}").rounds_head
    assert not Recipe.parse("layers: {lm_head: none, '*': w8a16}").rounds_head


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [(128, "w4a16"), (64, "w4a16_g64"), (32, "w4a16_g32"), (40, "w4a16_row"), (36, "w8a16")],
)
def test_without_a_scheme_it_is_4_bits_in_the_largest_groups(hidden: int, expected: str):
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "num_attention_heads": 2,
        "head_dim": hidden // 2,
    }
    model = meta(**sizes, num_key_value_heads=2)
    assert Recipe().settled(model).scheme == expected
    Recipe().plan(model)


def test_groups_that_do_not_divide_are_refused_with_those_that_would():
    with pytest.raises(
        Refused, match=f"w4a16 cannot pack {Q}: groups of 128 do not divide 64 columns"
    ) as caught:
        schemes("scheme: w4a16")
    assert caught.value.hint == "use w4a16_g32, which fits all layers"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layers: {model.layers.9.mlp.down_proj: none}", "matches no layer of this model"),
        ("layers: {'*.dwn_proj': none}", "matches no layer of this model"),
        ("layers: {model.embed_tokens: w8a16}", "an embedding stays as it is"),
        ("scheme: sparse24\npasses: [gptq]", f"{Q}: gptq rounds to"),
        ("scheme: w8a8\npasses: [wanda]", f"{Q}: wanda"),
        ("scheme: w4a16_g32\npasses: [smoothquant, gptq]", "smoothquant would change nothing"),
        (
            "scheme: w8a16\nlayers: {'*.q_proj': {scheme: w8a16, rounding: gptq}}",
            "must be rounded by one pass",
        ),
        ("scheme: w8a8_static\npasses: [rtn]\ncalibration: {samples: 0}", "w8a8_static needs calibration"),
    ],
)
def test_what_does_not_fit_the_model(text: str, said: str):
    with pytest.raises(Refused) as caught:
        schemes(text)
    assert said in caught.value.message


def test_a_name_that_is_nearly_right_is_answered_with_the_right_one():
    with pytest.raises(UnknownName) as caught:
        schemes("layers: {model.layers.0.self_attn.q_prj: none}")
    assert f"did you mean '{Q}'" in caught.value.hint
    assert "down_proj, gate_proj" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("scheme: w5a16", "unknown quantization scheme"),
        ("scheme: q4_0", "compressed-tensors has no format for q4_0"),
        ("scheme: 4", "scheme in the recipe has 4"),
        ("shceme: w4a16", "unknown key of a recipe 'shceme'"),
        ("passes: gptq", "a list was expected"),
        ("passes: [gptq: {}, awq: {}]", "make no sense in this order"),
        ("passes: [{gptq: {}, awq: {}}]", "one name with its options"),
        ("passes: [awq]", "round nothing"),
        ("passes: []", "round nothing"),
        ("passes: [rtn, gptq]", "make no sense in this order"),
        ("passes: [awq, rotation, gptq]", "make no sense in this order"),
        ("passes: [awq, awq, gptq]", "make no sense in this order"),
        ("passes: [nothing]", "unknown pass 'nothing'"),
        ("passes: [gptq: 3]", "an object (name: value) was expected"),
        ("passes: [3]", "passes in the recipe has 3"),
        ("layers: [none]", "an object (name: value) was expected"),
        ("layers: {'*': {schme: none}}", "unknown key of a layer 'schme'"),
        ("layers: {'*': {scheme: none, rounding: awq}}", "awq rounds nothing"),
        ("layers: {'*': 3}", "layers in the recipe has 3"),
        ("calibration: {sampels: 3}", "unknown key of calibration 'sampels'"),
        ("calibration: {samples: many}", "calibration samples is 'many'"),
        ("calibration: {texts: hamlet}", "a list was expected"),
        ("calibration: {samples: 0}\npasses: [gptq]", "gptq needs calibration"),
        ("calibration: {samples: 0}\npasses: [awq, rtn]", "awq needs calibration"),
        (
            "calibration: {samples: 0}\nlayers: {lm_head: {scheme: w8a16, rounding: gptq}}",
            "gptq needs calibration",
        ),
        ("dtype: bf16", "unknown dtype 'bf16'"),
        ("- a", "an object (name: value) was expected"),
        ("5: x\nscheme: none", "unknown key of a recipe '5'"),
        ("layers: {'*': {5: x, scheme: none}}", "unknown key of a layer '5'"),
        ("calibration: {5: x, seed: 1}", "unknown key of calibration '5'"),
        ("passes: [gptq: {5: x}]", "unknown option of gptq '5'"),
        ("passes: [rotation: {seed: 0x10000000000000000}, rtn]", "seed of rotation is 18446744073709551616"),
        ("scheme: [", "no YAML"),
        ("!!timestamp 5", "no YAML"),
        ("!!bool 5", "no YAML"),
        ("!!python/object/apply:os.getcwd []", "no YAML"),
        ("#" * (1 << 23), "too many to be one"),
    ],
)  # fmt: skip
def test_what_is_not_understood(text: str, said: str):
    with pytest.raises(Refused) as caught:
        Recipe.parse(text)
    assert said in caught.value.message
    assert caught.value.exit_code == 2


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(Refused, match="cannot be read"):
        Recipe.read(tmp_path / "none.yaml")
    (tmp_path / "bad").write_bytes(b"\xff")
    with pytest.raises(Refused, match="not UTF-8"):
        Recipe.read(tmp_path / "bad")
    (tmp_path / "good").write_text(FULL)
    assert Recipe.read(tmp_path / "good") == Recipe.parse(FULL)
