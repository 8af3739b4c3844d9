"""The tree of knobs: what it accepts, what it refuses, and how it becomes a command line."""

from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import hypothesis.strategies as st
import pytest
from cyclopts import App, Parameter
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
    assert said["model.dummy_weights"] == "true or false"
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


@pytest.mark.parametrize(
    ("dtype", "ours"), [("torch.bfloat16", "bfloat16"), ("float", "float32"), ("auto", "auto")]
)
def test_from_names_reads_types(dtype: str, ours: str):
    assert from_names(dtype=dtype).model.dtype == ours


@pytest.mark.parametrize(
    ("policy", "ours"), [("fcfs", "arrival"), ("arrival", "arrival"), ("priority", "priority")]
)
def test_from_names_reads_policies(policy: str, ours: str):
    assert from_names(scheduling_policy=policy).schedule.policy == ours


@pytest.mark.parametrize(("given", "ours"), [("auto", "auto"), ("fp8", "fp8"), ("fp8_e4m3", "fp8")])
def test_from_names_reads_cache_types(given: str, ours: str):
    assert from_names(kv_cache_dtype=given).memory.kv_dtype == ours


def test_from_names_refuses_a_cache_type_that_is_not_there():
    with pytest.raises(Refused, match="expected auto or fp8"):
        from_names(kv_cache_dtype="fp8_e5m2")


def test_deterministic_has_a_short_name():
    assert from_names(deterministic=True).schedule.deterministic


@pytest.mark.parametrize(("given", "ours"), [(False, "off"), ("auto", "auto")])
def test_from_names_reads_overlap(given: Any, ours: str):
    assert from_names(async_scheduling=given).schedule.overlap == ours


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tensor_parallel_size", 2),
        ("trust_remote_code", True),
        ("enable_lora", True),
    ],
)
def test_from_names_refuses_what_it_would_have_to_ignore(name: str, value: Any):
    with pytest.raises(Refused, match="not supported") as refused:
        from_names(**{name: value})
    assert refused.value.param == name
    assert refused.value.hint


@pytest.mark.parametrize(
    ("name", "value"), [("load_format", "pt"), ("dtype", "int8"), ("max_num_seqs", 0), ("model", None)]
)
def test_from_names_refuses_values(name: str, value: Any):
    with pytest.raises(Refused):
        from_names(**{name: value})


def test_from_names_proposes_the_nearest_name():
    with pytest.raises(UnknownName) as refused:
        from_names(max_model_length=5)
    assert "did you mean 'max_model_len'?" in refused.value.hint


# -- the command line ---------------------------------------------------------------------------------


def parser() -> App:
    app = App(name="toy", result_action="return_value")

    @app.command
    def go(prompt: str, *, config: Annotated[Config, Parameter(name="*")] = Config()) -> Config:
        return config

    return app


def test_the_tree_is_a_command_line():
    words = ["go", "hi", "--memory.share", "0.5", "--model.dummy-weights", "--schedule.policy", "priority"]
    expected = {"memory.share": 0.5, "model.dummy_weights": True, "schedule.policy": "priority"}
    assert parser()(words) == replace_dotted(Config(), expected)


def test_a_refused_value_reaches_the_program_as_a_fault():
    with pytest.raises(Refused, match=r"memory\.share is 5"):
        parser()(["go", "hi", "--memory.share", "5"])


def test_help_is_written_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "300")
    parser()(["go", "--help"])
    shown = "".join(capsys.readouterr().out.replace("│", " ").split())
    for name, knob in flat(Config).items():
        assert f"--{name.replace('_', '-')}" in shown
        assert "".join(knob.help.split()) in shown


def test_a_checkpoints_own_method_need_not_be_said():
    assert from_names(quantization="awq").model.quantization == "auto"
    assert from_names(quantization="fp8").model.quantization == "fp8"
    assert from_names(quantization=None).model.quantization == "auto"


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        (None, None),
        ({"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}, 5),
        ({"model": "[ngram]", "num_speculative_tokens": 2}, 2),
    ],
)
def test_prompt_lookup_by_vllms_name(given, ours):
    assert from_names(speculative_config=given).schedule.speculate == ours


@pytest.mark.parametrize(
    "given", [{"model": "some/draft", "num_speculative_tokens": 5}, {"method": "eagle"}, "ngram"]
)
def test_other_ways_to_guess_are_refused(given):
    with pytest.raises(Refused):
        from_names(speculative_config=given)
