"""The tables are parts of speeds, and can be changed by name."""

import pytest

from headrace.plan.efficiency import ENGINES, Efficiency
from headrace.plan.scheme import SCHEMES

TABLES = [(name, kind) for name, made in ENGINES.items() for kind in made.on]


@pytest.mark.parametrize(("name", "kind"), TABLES)
def test_parts_are_parts(name: str, kind: str):
    for key, value in ENGINES[name].on[kind].values().items():
        assert 0 < value < (20_000 if key.endswith("_us") else 1), key


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_an_efficiency(scheme: str):
    table = ENGINES["vllm"].on["gpu"]
    assert 0 < table.of_weights(scheme) < 1
    assert 0 < table.of_matmul(scheme) < 1


def test_weights_are_not_read_faster_than_a_measured_stream():
    for made in ENGINES.values():
        assert made.on["gpu"].weights["bf16"] <= 4.57 / 4.8 + 0.001


def test_changed_by_name():
    table: Efficiency = ENGINES["vllm"].on["gpu"]
    made = table.changed({"kv": 0.1, "weights.fp8": 0.2, "matmul.fp8": 0.3, "weights.new": 0.4})
    assert (made.kv, made.weights["fp8"], made.matmul["fp8"], made.of_weights("new")) == (0.1, 0.2, 0.3, 0.4)
    assert made.changed(table.values()).values() | {"weights.new": 0.4} == table.values() | {
        "weights.new": 0.4
    }
