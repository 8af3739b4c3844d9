"""Measured runs are predicted within a quarter by one table per engine; a fit finds what made the numbers."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from headrace.base.errors import Refused
from headrace.bench.result import Measure, Result
from headrace.plan.calibrate import Sample, _requests, fit, read, sample
from headrace.plan.efficiency import ENGINES
from headrace.plan.gpus import GPUS
from headrace.plan.replay import Limits
from tests.plan.anchors import ALLOTTED, LLAMA, MEASURED, VLLM_CPU
from tests.plan.options import option

ROWS = {"vllm": 1024, "headrace": 1024}
RUNS = [
    (engine, model, scheme, name)
    for engine, tables in MEASURED.items()
    for (model, scheme), rows in tables.items()
    for name in rows
]


@cache
def anchor(engine: str, model: str, scheme: str, name: str) -> Sample:
    """One measured row, as a sample."""
    setup = option(model, engine=engine, scheme=scheme, max_len=32768).setup
    limits = Limits(ROWS[engine], 8192, ALLOTTED[model, 32768][2], ENGINES[engine].beside)
    return sample(name, setup, _requests(name, True), limits, MEASURED[engine][model, scheme][name])


@pytest.mark.parametrize(("engine", "model", "scheme", "name"), RUNS)
def test_within_a_quarter_of_what_was_measured(engine: str, model: str, scheme: str, name: str):
    row = anchor(engine, model, scheme, name)
    assert abs(row.error(ENGINES[engine].on["gpu"])) < 0.25


@pytest.mark.parametrize("name", VLLM_CPU)
def test_and_so_are_two_cores(name: str):
    setup = option("smollm2-135m", "cpu-2core", engine="vllm").setup
    row = sample(name, setup, _requests(name, False), Limits(256, 2048, 100_000), VLLM_CPU[name])
    assert abs(row.error(ENGINES["vllm"].on["cpu"])) < 0.25


@pytest.mark.parametrize("engine", MEASURED)
def test_and_within_a_tenth_on_average(engine: str):
    rows = [anchor(*run) for run in RUNS if run[0] == engine]
    errors = [abs(row.error(ENGINES[engine].on["gpu"])) for row in rows]
    assert sum(errors) / len(errors) < 0.10


def test_a_fit_finds_the_table_that_made_the_numbers():
    """Runs made up from another table: fitted, they are predicted within four percent."""
    start = ENGINES["vllm"].on["gpu"]
    other = {"kv": 0.4, "weights.bf16": 0.6, "matmul.bf16": 0.5, "row_us": 20, "step_us": 500}
    truth = replace(start, values={**start.values, **other})
    rows = [anchor(*run) for run in RUNS if run[:3] == ("vllm", LLAMA, "bf16") and run[3] != "mixed"]
    made_up = [replace(row, seconds=row.predicted(truth)) for row in rows]
    before = max(abs(row.error(start)) for row in made_up)
    found = fit(made_up, start)
    assert before > 0.2
    assert max(abs(row.error(found)) for row in made_up) < 0.04
    assert found["weights.fp8"] == start["weights.fp8"]  # no run of it: it stays
    assert found["attention"] == start["attention"]
    assert all(value <= 0.98 for name, value in found.values.items() if not name.endswith("_us"))


def test_what_was_fitted_counts_as_measured():
    start = replace(ENGINES["headrace"].on["gpu"], measured=frozenset({"bf16"}))
    row = anchor("vllm", LLAMA, "fp8", "single")
    assert "fp8" in fit([row], start).measured


# -- result files ----------------------------------------------------------------------------------------------


def result(folder: Path, measures: list[Measure] | None = None, **changes: Any) -> Path:
    """A file as `headrace bench throughput` writes it."""
    said: dict[str, Any] = {
        "benchmark": "throughput",
        "machine": {"cpu": "x", "cores": 8, "gpu": "NVIDIA H200"},
        "versions": {},
        "commit": None,
        "settings": {"model": LLAMA, "dtype": "bfloat16", "kv_tokens": 900_000, "rows": 512, "tokens": 8192},
        "measures": measures
        or [Measure("single: time", 1.1, "s", "lower"), Measure("single: output", 1, "", "")],
    } | changes
    file = folder / "result.json"
    Result(**said).write(file)
    return file


def test_a_result_is_read(tmp_path: Path):
    (row,) = read(result(tmp_path), option("qwen3-0.6b", "l4"), GPUS)
    assert (row.setup.anatomy.name, row.setup.gpu.name, row.setup.scheme.name) == (LLAMA, "h200", "bf16")
    assert row.seconds == 1.1
    assert abs(row.error(ENGINES["headrace"].on["gpu"])) < 0.1


def test_requests_of_given_lengths(tmp_path: Path):
    (row,) = read(result(tmp_path, [Measure("8x512+128: time", 1.0, "s", "lower")]), option(), GPUS)
    assert float((row.run.work.rows * row.run.times).sum()) == 8 * 128


def test_what_a_result_does_not_say_is_what_is_planned(tmp_path: Path):
    file = result(tmp_path, machine={"cpu": "x", "cores": 2}, settings={"model": "/tmp/gone"})
    (row,) = read(file, option("qwen3-0.6b", "cpu-2core", scheme="fp32"), GPUS)
    assert (row.setup.anatomy.name, row.setup.gpu.name) == ("qwen3-0.6b", "cpu-2core")
    assert row.setup.scheme.name == "fp32"


@pytest.mark.parametrize(
    ("quantization", "scheme"),
    [("none", "bf16"), ("fp8", "fp8"), ("w4a16_g128", "w4a16"), ("int8", "int8"), ("checkpoint", "nvfp4")],
)
def test_a_run_of_quantized_weights_is_one(tmp_path: Path, quantization: str, scheme: str):
    said = {"model": LLAMA, "dtype": "bfloat16", "quantization": quantization}
    (row,) = read(result(tmp_path, settings=said), option(scheme="nvfp4"), GPUS)
    assert row.setup.scheme.name == scheme


@pytest.mark.parametrize(
    "changes",
    [
        {"benchmark": "latency"},
        {"measures": [Measure("import", 1.0, "s", "lower")]},
        {"measures": [Measure("mystery: time", 1.0, "s", "lower")]},
        {"measures": [Measure("single: time", 0.0, "s", "lower")]},
        {"settings": {"model": LLAMA, "scheme": "zip9"}},
        {"settings": {"model": LLAMA, "quantization": "zip9"}},
    ],
)
def test_other_results_are_refused(tmp_path: Path, changes: dict[str, Any]):
    with pytest.raises(Refused):
        read(result(tmp_path, **changes), option(), GPUS)
