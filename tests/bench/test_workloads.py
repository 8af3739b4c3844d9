"""A workload's name and vocabulary decide its work, to the token."""

from pathlib import Path

import pytest

from headrace.base.config import Config, Model
from headrace.base.errors import TooLong, UnknownName
from headrace.bench.shapes import SHAPES, shaped
from headrace.bench.workloads import CPU, GPU, check, custom, workload
from headrace.checkpoint.config import read_config

SMALL = [(True, name) for name in GPU if name not in ("mixed", "long", "prefill", "prefix")]


@pytest.mark.parametrize(("gpu", "name"), SMALL + [(False, name) for name in CPU])
def test_a_name_is_always_the_same_work(gpu: bool, name: str):
    work = workload(name, 1000, gpu)
    assert work == workload(name, 1000, gpu)
    assert len(work.prompts) == len(work.outputs)
    assert all(10 <= token < 990 for prompt in work.prompts for token in prompt)


def test_repeats_differ_in_tokens_and_not_in_lengths():
    work = workload("mixed64", 49152, gpu=False)
    again = work.again(1, 49152)
    assert [len(p) for p in again.prompts] == [len(p) for p in work.prompts]
    assert all(a != b for a, b in zip(work.prompts, again.prompts, strict=True))
    assert all(20 <= token < 49132 for prompt in again.prompts for token in prompt)


def test_a_shared_prefix_is_shared():
    work = workload("prefix32", 49152, gpu=False)
    assert len({tuple(prompt[:768]) for prompt in work.prompts}) == 1
    assert len({tuple(prompt) for prompt in work.prompts}) == 32


def test_sizes():
    work = custom(3, 5, 7, 1000, longest=12)
    assert (work.tokens_in, work.tokens_out) == (15, 21)


def test_what_never_fits_is_refused_before_its_tokens_are_drawn():
    with pytest.raises(TooLong, match="10000000000007 tokens"):
        custom(1, 10**13, 7, 1000, longest=12)


def test_unknown_names_list_the_known():
    with pytest.raises(UnknownName, match="batch16"):
        workload("nothing", 1000, gpu=False)
    check(["batch256", "batch16"])
    with pytest.raises(UnknownName, match="did you mean 'single'"):
        check(["single", "sngle"])


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_a_model_we_read(name: str, tmp_path: Path):
    model = shaped(Config(), name, tmp_path).model
    settings = read_config(Path(model.path))
    assert settings["vocab_size"] > 1000
    assert (model.dummy_weights, model.max_len) == (True, min(32768, settings["max_position_embeddings"]))
    asked = Config(model=Model(max_len=100))
    assert shaped(asked, name, tmp_path).model.max_len == 100


def test_an_unknown_shape_lists_the_known(tmp_path: Path):
    with pytest.raises(UnknownName, match=r"llama-3\.1-8b"):
        shaped(Config(), "llama-9", tmp_path)
