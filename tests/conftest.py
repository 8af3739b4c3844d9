"""Fixtures every folder may use, and what a test run may take of the machine."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # One core for each worker, before anything asks how many there are: threads of several workers that wait for
    # each other on the same cores take many times as long as one thread alone.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(cores)]})

import headrace  # noqa: F401 - before torch: it sets how long torch's threads spin

# isort: split
import torch

# The gate tries the same examples on every run, so that red means a change. New ones: `--hypothesis-profile search`.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile("steady")

if not torch.cuda.is_available():
    # Kernels run in Triton's interpreter. Read when triton is imported, which any test's imports may do.
    os.environ["TRITON_INTERPRET"] = "1"


LONGEST = ("whole", "serve", "kernels", "engine")
"""Folders in which some files take long, however few tests they have."""


def pytest_configure(config: pytest.Config) -> None:
    """Have xdist keep the order of files; its own is by numbers of tests, so that the longest ones came last."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, or one worker would wait for the other in the end. Skip what needs a GPU."""
    folders = [Path(__file__).with_name(name) for name in LONGEST]
    items.sort(key=lambda item: [folder not in item.path.parents for folder in folders])
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The default model's .gguf file, downloaded at most once. Tests that ask for it carry the mark `model`.

    Skips where the model cannot be had, but fails in CI, where it must be.
    """
    from headrace.base.errors import Unreachable
    from headrace.checkpoint import hub

    try:
        return hub.find("smollm2-135m")
    except Unreachable as gone:
        if "CI" in os.environ:
            raise
        pytest.skip(f"the default model cannot be had: {gone.message}")
