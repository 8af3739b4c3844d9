"""The table of devices: names as people write them, and files that change it."""

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.base.errors import Refused
from headrace.plan.gpus import GPUS, gpu, read_table

ASKED = "h100 h200 b200 a100-40gb a100-80gb l40s l4 a10g mi300x rtx-4090 rtx-5090 cpu"


@pytest.mark.parametrize("name", ASKED.split())
def test_the_devices_one_can_rent_or_buy(name: str):
    made = GPUS[name]
    assert made.price > 0
    assert made.memory > 20e9
    assert made.bandwidth > 1e11
    assert made.bf16 > 1e12


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("H200", "h200"), ("NVIDIA H200", "h200"), ("a100", "a100-80gb"), ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("rtx_5090", "rtx-5090"), ("4090", "rtx-4090"),
        ("NVIDIA H100 80GB HBM3", "h100"),
    ],
)  # fmt: skip
def test_names_as_people_and_drivers_write_them(said: str, name: str):
    assert gpu(said).name == name


def test_speeds_fall_back_on_what_a_device_has():
    assert GPUS["a100-80gb"].speed("fp8") == GPUS["a100-80gb"].bf16
    assert GPUS["h200"].speed("fp4") == GPUS["h200"].fp8
    assert GPUS["b200"].speed("fp4") == 9000e12
    assert GPUS["cpu"].speed("fp32") == GPUS["cpu"].fp32 < GPUS["cpu"].bf16


def table(folder: Path, said: Any) -> Path:
    file = folder / "gpus.json"
    file.write_text(said if isinstance(said, str) else json.dumps(said))
    return file


def test_a_file_changes_prices_and_adds_devices(tmp_path: Path):
    said = {"h100": {"price": 2.1}, "mine": {"memory": 48, "bandwidth": 864, "bf16": 362, "price": 0.5}}
    made = read_table(table(tmp_path, said))
    assert (made["h100"].price, made["h100"].bf16) == (2.1, GPUS["h100"].bf16)
    assert (made["mine"].memory, made["mine"].bandwidth, made["mine"].bf16) == (48 * 2**30, 864e9, 362e12)
    assert made["l4"] == GPUS["l4"]


@pytest.mark.parametrize(
    "said",
    [
        "no json", "[]", {"h100": 3}, {"h100": {"prize": 2}}, {"h100": {"price": "cheap"}}, {"h100": {"price": -1}},
        {"h100": {"price": True}}, {"h100": {"kind": "tpu"}}, {"mine": {"memory": 48}},
        *({"h100": {name: 0}} for name in ("memory", "bandwidth", "bf16", "link")), "[" * 200_000,
        {"h100": {"memory": 1e300}}, {"h100": {"bandwidth": 1e-300}},
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, said: Any):
    with pytest.raises(Refused):
        read_table(table(tmp_path, said))
