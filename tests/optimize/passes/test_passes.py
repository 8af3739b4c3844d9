"""What every pass must do; a new file in optimize/passes is found by itself. What is wrong with options is said."""

import re
from typing import Any

import pytest
import torch

from headrace.base.errors import Refused, UnknownName
from headrace.optimize import passes
from headrace.optimize.passes import Change, Rounding, Turn
from headrace.quant.schemes import known, scheme_named
from tests.optimize.passes import made

NAMES = passes.known()
PLAIN = {name: passes.make(name, {}) for name in NAMES}
PAIRS = [
    (name, scheme)
    for name, each in PLAIN.items()
    if isinstance(each, Rounding)
    for scheme in known()
    if not scheme.startswith("q") and each.fits(known()[scheme]) is None
]
CHANGES = [("awq", {"inner": way}) for way in ("never", "always")]
CHANGES += [("smoothquant", {"inner": way}) for way in (False, True)]


def test_they_are_all_there():
    assert {"awq", "gptq", "rotation", "rtn", "smoothquant", "sparsegpt", "wanda"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_of_one_kind_and_says_what_it_does(name: str):
    made = passes.make(name, {})
    assert made.name == name
    assert sum(isinstance(made, kind) for kind in (Turn, Change, Rounding)) == 1
    assert 0 <= passes.rank(made) <= 2
    said = type(made).__doc__ or ""
    assert all(re.search(rf"^\s*{option}\s\s", said, re.M) for option in passes.options_of(made)), said
    assert passes.make(name, passes.options_of(made)) == made


def test_an_unknown_pass_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown pass 'gptk'") as caught:
        passes.make("gptk", {})
    assert "did you mean 'gptq'" in caught.value.hint


def test_an_unknown_option_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown option of gptq 'dmp'") as caught:
        passes.make("gptq", {"dmp": 0.1})
    assert "did you mean 'damp'" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gptq", {"damp": "much"}), ("gptq", {"damp": 0}), ("gptq", {"damp": True}), ("gptq", {"order": 1}),
        ("gptq", {"steps": 1.5}), ("gptq", {"steps": 0}), ("rtn", {"least": 2.0}), ("rtn", {"steps": None}),
        ("awq", {"steps": 1}), ("awq", {"steps": 5000}), ("awq", {"inner": "sometimes"}), ("sparsegpt", {"damp": -1.0}),
        ("smoothquant", {"alpha": 1.1}), ("smoothquant", {"alpha": float("nan")}),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_refused(name: str, options: dict[str, object]):
    (option,) = options
    with pytest.raises(Refused, match=option) as caught:
        passes.make(name, options)
    assert caught.value.param == f"{name}.{option}"


def test_a_whole_number_is_a_number():
    assert passes.make("gptq", {"damp": 1}) == passes.make("gptq", {"damp": 1.0})


@pytest.mark.parametrize(("name", "scheme"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_rounded_is_as_the_scheme_packs_it_and_the_same_again(
    name: str, scheme: str, dtype: torch.dtype
):
    """Twice by the same inputs, as two projections would be: the first may give up the Hessian."""
    way, weight = PLAIN[name], made.correlated(16, 256, seed=1, stand_out=3.0)
    assert isinstance(way, Rounding)
    inputs, kept = made.inputs(made.correlated(300, 256)), weight.clone()
    first, again = (way.pack(weight, known()[scheme], inputs, dtype) for _ in range(2))
    expected = known()[scheme].pack(weight.to(dtype))
    assert {n: (t.shape, t.dtype) for n, t in first.items()} == {
        n: (t.shape, t.dtype) for n, t in expected.items()
    }
    assert all(torch.equal(first[n].float(), again[n].float()) for n in first)
    assert torch.equal(weight, kept)
    assert "hessian" not in way.needs or inputs.hessian_KK is None


@pytest.mark.parametrize(("name", "options"), CHANGES)
@pytest.mark.parametrize("config", made.CONFIGS.values(), ids=made.CONFIGS)
def test_a_changed_block_computes_what_it_did(config: dict[str, Any], name: str, options: dict[str, Any]):
    change, x = passes.make(name, options), made.hidden(config["hidden_size"])
    assert isinstance(change, Change)
    blocks = [made.block(config) for _ in range(4)]
    idle = scheme_named("w4a16_row") if name == "smoothquant" else None
    schemes = [idle, scheme_named("w8a8"), scheme_named("w8a8")]
    for block, scheme in zip(blocks[1:], schemes, strict=True):
        change.change(block, made.seen(block, x), lambda layer, scheme=scheme: scheme)
    weights = [torch.cat([p.flatten() for p in block.parameters()]) for block in blocks]
    assert torch.equal(weights[1], weights[0]), "there is nothing to do"
    assert torch.equal(weights[2], weights[3]), "the same again"
    assert not torch.equal(weights[2], weights[0])
    before = made.run(blocks[0], x)
    assert (made.run(blocks[2], x) - before).norm() < 1e-4 * before.norm()
