"""Rotary tables: by hand, against transformers far out, and where they are computed."""

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from headrace.base.errors import BadCheckpoint, UnknownName
from headrace.nn.rope import KNOWN, Rope

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAR = 131072


def test_by_hand():
    table = Rope(4, 100.0, None, 3, 3).table
    angles = [[0, 0], [1, 0.1], [2, 0.2]]
    wanted = [[*map(math.cos, row), *map(math.sin, row)] for row in angles]
    torch.testing.assert_close(table, torch.tensor(wanted))


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 4.0},
        LLAMA3 | {"original_max_position_embeddings": 8192},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    ],
    ids=str,
)
def test_equals_transformers_far_out(scaling: dict[str, Any] | None):
    given = {} if scaling is None else {"rope_scaling": dict(scaling)}
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=1,
        head_dim=128,
        rope_theta=500000.0,
        max_position_embeddings=FAR,
        **given,
    )
    at = torch.tensor([0, 1, 4095, 8192, 100_003, FAR - 1])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), at[None])
    wanted = torch.cat([cos[0, :, :64], sin[0, :, :64]], dim=1)
    torch.testing.assert_close(Rope(128, 500000.0, scaling, FAR, FAR).table[at], wanted, atol=1e-4, rtol=0)


def test_dynamic_rows_depend_on_their_own_position_only():
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    short, long = Rope(8, 100.0, scaling, 40, 16), Rope(8, 100.0, scaling, 90, 16)
    torch.testing.assert_close(short.table, long.table[:40])
    torch.testing.assert_close(short.table[:16], Rope(8, 100.0, None, 16, 16).table)
    base = 100.0 * (2.0 * 31 / 16 - 1) ** (8 / 6)
    torch.testing.assert_close(short.table[30], Rope(8, base, None, 31, 16).table[30])


def test_factors_divide_frequencies_of_every_kind():
    for scaling in (None, {"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "linear", "factor": 4.0}):
        plain = Rope(4, 100.0, scaling, 12, 6)
        halved = Rope(4, 100.0, scaling, 12, 6, factors=[2.0, 2.0])
        angle = torch.atan2(plain.table[:, 2:], plain.table[:, :2])
        found = torch.atan2(halved.table[:, 2:], halved.table[:, :2])
        torch.testing.assert_close(torch.sin(2 * found), torch.sin(angle), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["default", "dynamic"])
def test_a_table_off_the_meta_device_is_computed_not_garbage(kind: str):
    made = (8, 100.0, {"rope_type": kind, "factor": 2.0}, 64, 16)
    wanted = Rope(*made).table
    with torch.device("meta"):
        ropes = [Rope(*made) for _ in range(3)]
        assert all(rope.table.is_meta for rope in ropes)
        inside = Rope(*made).to_empty(device="cpu")
    emptied = ropes[0].to(torch.bfloat16).to_empty(device="cpu").to(torch.float16)
    ropes[1].place("cpu")
    for rope in (emptied, ropes[1], inside):
        assert torch.equal(rope.table, wanted)
    parent = torch.nn.Sequential(ropes[2], torch.nn.Sequential(ropes[2])).to_empty(device="cpu")
    assert torch.equal(ropes[2].table, wanted)
    assert [name for name, _ in parent.named_buffers()] == ["0.table"]
    assert not parent.state_dict()


def test_a_table_stays_where_it_is():
    rope = Rope(8, 100.0, None, 64, 16)
    table = rope.table
    rope.place("cpu")
    assert rope.half().table is table


def test_an_unknown_scaling_lists_the_known():
    with pytest.raises(UnknownName, match="longrope") as caught:
        Rope(8, 100.0, {"rope_type": "longrope"}, 64, 16)
    assert all(kind in caught.value.hint for kind in KNOWN)


@pytest.mark.parametrize("factors", [[1.0], [1.0, 0.0], [1.0, math.nan], [1.0, -1.0]], ids=str)
def test_senseless_factors(factors: list[float]):
    with pytest.raises(BadCheckpoint, match="frequency factors"):
        Rope(4, 100.0, None, 8, 8, factors)


def test_lengths_that_a_scaling_does_not_name():
    """llama3 and yarn then refer to max_position_embeddings; yarn's factor is the ratio of the two."""
    named = LLAMA3 | {"original_max_position_embeddings": 16}
    assert torch.equal(Rope(8, 100.0, LLAMA3, 64, 16).table, Rope(8, 100.0, named, 64, 99).table)
    yarn = {"rope_type": "yarn", "original_max_position_embeddings": 16}
    assert torch.equal(
        Rope(8, 100.0, yarn, 64, 64).table, Rope(8, 100.0, yarn | {"factor": 4.0}, 64, 64).table
    )


def test_a_base_that_turns_nothing():
    with pytest.raises(BadCheckpoint, match="rope_theta is 1"):
        Rope(8, 1.0, None, 8, 8)
    with pytest.raises(BadCheckpoint, match="no finite"):
        Rope(8, 100.0, {"type": "linear", "factor": 5e-324}, 8, 8)
