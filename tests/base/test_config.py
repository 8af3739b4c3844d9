"""The tree of knobs: what it accepts, what it refuses, and vLLM's names for it."""

from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from headrace.base.config import (
    Config,
    Memory,
    Model,
    Schedule,
    describe,
    flat,
    from_names,
    replace_dotted,
    values,
)
from headrace.base.errors import Refused, UnknownName

NAMES = list(flat(Config))


def test_flat_names_every_leaf_of_the_tree():
    assert {"model.path", "memory.share", "schedule.policy"} <= set(NAMES)
    assert len(NAMES) == sum(len(flat(branch)) for branch in (Model, Memory, Schedule))


def test_defaults_are_legal_and_read_back():
    assert values(Config()) == {name: knob.default for name, knob in flat(Config).items()}
    assert replace_dotted(Config(), values(Config())) == Config()


def test_the_tree_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Config().memory.share = 0.5  # type: ignore[misc]


def test_replace_dotted_changes_only_what_is_named():
    config = replace_dotted(Config(), {"memory.share": 0.5, "schedule.rows": 3})
    changed = {name for name in NAMES if values(config)[name] != values(Config())[name]}
    assert changed == {"memory.share", "schedule.rows"}
    assert (config.memory.share, config.schedule.rows) == (0.5, 3)
    assert Config() == Config(model=Model(), memory=Memory(), schedule=Schedule())


def test_replace_dotted_changes_a_leaf_beside_branches():
    @dataclass(frozen=True)
    class Odd:
        size: int = field(default=1, metadata={"help": "", "low": None, "high": None, "check": None})

    assert replace_dotted(Odd(), {"size": 2}) == Odd(size=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory.share", 0.0),
        ("memory.share", 1.5),
        ("memory.share", float("nan")),
        ("memory.share", float("inf")),
        ("memory.share", True),
        ("memory.share", "half"),
        ("memory.block", 0),
        ("memory.block", None),
        ("memory.block", 16.0),
        ("memory.kv_blocks", 0),
        ("model.path", "  "),
        ("model.path", None),
        ("model.dtype", "float64"),
        ("model.device", "tpu"),
        ("model.device", "cuda:"),
        ("model.device", "cuda:x"),
        ("model.device", "cpu:0"),
        ("model.max_len", -1),
        ("model.seed", -1),
        ("model.seed", 2**63),
        ("model.dummy_weights", 1),
        ("schedule.policy", "fair"),
        ("schedule.tokens", 0),
        ("schedule.rows", 0),
        ("schedule.prefix_cache", "yes"),
        ("schedule.overlap", True),
    ],
)
def test_what_cannot_be_is_refused_by_name(name: str, value: Any):
    with pytest.raises(Refused) as refused:
        replace_dotted(Config(), {name: value})
    assert refused.value.param == name
    assert repr(value) in refused.value.message


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_devices(device: str):
    assert Model(device=device).device == device


def test_an_unknown_name_proposes_the_nearest():
    with pytest.raises(UnknownName, match=r"memory\.shar") as refused:
        replace_dotted(Config(), {"memory.shar": 0.5})
    assert "did you mean 'memory.share'?" in refused.value.hint


def test_describe_says_what_is_accepted():
    said = {name: describe(knob) for name, knob in flat(Config).items()}
    assert said["schedule.policy"] == "arrival or priority"
    assert said["memory.block"] == "a whole number from 1 to 1024"
    assert said["model.max_len"] == "a whole number of at least 1"
    assert said["model.dummy_weights"] == said["schedule.deterministic"] == "true or false"
    assert said["model.tokenizer"] == "text"


@given(st.sampled_from(NAMES), st.none() | st.booleans() | st.integers() | st.floats() | st.text())
def test_any_value_is_kept_as_it_is_or_refused(name: str, value: Any):
    try:
        kept = values(replace_dotted(Config(), {name: value}))[name]
    except Refused as refused:
        kept = refused.param
    assert kept in (value, name)


# -- vLLM's names -------------------------------------------------------------------------------------


def test_from_names_reads_the_other_dialect():
    config = from_names(
        model=Path("folder"),
        tokenizer="elsewhere",
        gpu_memory_utilization=0.5,
        max_model_len=100,
        max_num_seqs=8,
        max_num_batched_tokens=256,
        block_size=32,
        enable_prefix_caching=False,
        dtype="half",
        seed=7,
        load_format="dummy",
        num_gpu_blocks_override=99,
        scheduling_policy="priority",
        async_scheduling=True,
        enforce_eager=True,
        disable_log_stats=False,
        tensor_parallel_size=1,
        trust_remote_code=False,
        quantization=None,
    )
    assert config.model == Model(
        path="folder", tokenizer="elsewhere", dtype="float16", max_len=100, dummy_weights=True, seed=7
    )
    assert config.memory == Memory(share=0.5, block=32, kv_blocks=99)
    assert config.schedule == Schedule(
        tokens=256, rows=8, policy="priority", prefix_cache=False, overlap="on", graphs=False
    )


def test_from_names_takes_dotted_names_and_none():
    assert from_names(**{"memory.share": 0.5}, max_model_len=None) == Config(memory=Memory(share=0.5))
    assert from_names() == Config()


NGRAM = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}


@pytest.mark.parametrize(
    ("name", "given", "knob", "ours"),
    [
        ("dtype", "torch.bfloat16", "model.dtype", "bfloat16"),
        ("dtype", "float", "model.dtype", "float32"),
        ("dtype", "auto", "model.dtype", "auto"),
        ("quantization", "awq", "model.quantization", "auto"),  # what a checkpoint says need not be said
        ("quantization", "fp8", "model.quantization", "fp8"),
        ("quantization", None, "model.quantization", "auto"),
        ("kv_cache_dtype", "auto", "memory.kv_dtype", "auto"),
        ("kv_cache_dtype", "fp8", "memory.kv_dtype", "fp8"),
        ("kv_cache_dtype", "fp8_e4m3", "memory.kv_dtype", "fp8"),
        ("scheduling_policy", "fcfs", "schedule.policy", "arrival"),
        ("scheduling_policy", "arrival", "schedule.policy", "arrival"),
        ("async_scheduling", False, "schedule.overlap", "off"),
        ("async_scheduling", "auto", "schedule.overlap", "auto"),
        ("deterministic", True, "schedule.deterministic", True),
        ("deterministic", False, "schedule.deterministic", False),
        ("deterministic", "auto", "schedule.deterministic", None),
        ("speculative_config", None, "schedule.speculate", None),
        ("speculative_config", NGRAM, "schedule.speculate", 5),
        ("speculative_config", {"model": "[ngram]", "num_speculative_tokens": 2}, "schedule.speculate", 2),
    ],
)
def test_from_names_reads_values(name: str, given: Any, knob: str, ours: Any):
    assert values(from_names(**{name: given}))[knob] == ours


@pytest.mark.parametrize(
    ("name", "value"), [("tensor_parallel_size", 2), ("trust_remote_code", True), ("enable_lora", True)]
)
def test_from_names_refuses_what_it_would_have_to_ignore(name: str, value: Any):
    with pytest.raises(Refused, match="not supported") as refused:
        from_names(**{name: value})
    assert refused.value.param == name
    assert refused.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("load_format", "pt"),
        ("dtype", "int8"),
        ("max_num_seqs", 0),
        ("model", None),
        ("kv_cache_dtype", "fp8_e5m2"),
        ("speculative_config", {"model": "some/draft", "num_speculative_tokens": 5}),
        ("speculative_config", {"method": "eagle"}),
        ("speculative_config", "ngram"),
    ],
)
def test_from_names_refuses_values(name: str, value: Any):
    with pytest.raises(Refused):
        from_names(**{name: value})


def test_from_names_proposes_the_nearest_name():
    with pytest.raises(UnknownName) as refused:
        from_names(max_model_length=5)
    assert "did you mean 'max_model_len'?" in refused.value.hint
