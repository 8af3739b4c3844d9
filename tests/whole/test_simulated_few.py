"""A simulated GPU says what the CPU says where attention of few rows is one launch with what comes before it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.kernels import configs, table
from headrace.kernels.choices import PagedFew
from tests.simulated_gpu import Gpu
from tests.whole.test_simulated_gpu import PROMPTS, assert_agree
from tests.whole.test_simulated_gpu import folder as folder
from tests.whole.test_simulated_gpu import gpu as gpu
from tests.whole.test_simulated_gpu import interpreted as interpreted

ONE = "attend_new_kernel"


@pytest.fixture(autouse=True)
def measured(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A table that says so for up to two rows."""
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    use = configs.brief(PagedFew(16, 2, 1, 16))
    rows = [{"head_dim": 64, "rows": 2, "use": use}]
    table.write(table.own(torch.cuda.get_device_capability()), {"few": rows}, {})
    configs.table.cache_clear()
    yield
    configs.table.cache_clear()


@pytest.mark.parametrize(
    ("folder", "names"), [("qwen", {}), ("gemma", {"kv_cache_dtype": "fp8"})], indirect=["folder"], ids=str
)
def test_few_rows_take_one_launch_and_prompts_two(folder: Path, gpu: Gpu, names: dict[str, Any]):
    assert_agree(gpu, folder, PROMPTS[:2], **names)
    assert gpu.replays
    assert {ONE, "rotate_store_kernel"} <= set(gpu.launched)


def test_more_rows_than_were_measured_take_two(folder: Path, gpu: Gpu):
    assert_agree(gpu, folder)
    assert ONE not in gpu.launched
