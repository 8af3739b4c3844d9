"""The tables are parts of speeds, with a number for every scheme."""

import pytest

from headrace.plan.efficiency import ENGINES, Efficiency
from headrace.plan.scheme import SCHEMES

TABLES = [(name, kind) for name, made in ENGINES.items() for kind in made.on]


@pytest.mark.parametrize(("name", "kind"), TABLES)
def test_parts_are_parts(name: str, kind: str):
    for key, value in ENGINES[name].on[kind].values.items():
        assert 0 < value < (20_000 if key.endswith("_us") else 1), key


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_an_efficiency(scheme: str):
    table = ENGINES["vllm"].on["gpu"]
    assert 0 < table.of("weights", scheme) < 1
    assert 0 < table.of("matmul", scheme) < 1


def test_weights_are_not_read_faster_than_a_measured_stream():
    for made in ENGINES.values():
        assert made.on["gpu"]["weights.bf16"] <= 4.57 / 4.8 + 0.001


def test_a_scheme_without_a_number_has_that_of_its_like():
    table = Efficiency({"weights.bf16": 0.9, "weights.fp8": 0.8, "matmul.bf16": 0.7, "matmul.int8": 0.6})
    assert [table.of("weights", name) for name in ("fp8", "int8", "w4a16", "new")] == [0.8, 0.8, 0.9, 0.9]
    assert table.of("matmul", "int8") == 0.6
