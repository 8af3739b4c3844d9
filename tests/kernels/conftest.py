"""Kernels run on the GPU where there is one, and in Triton's interpreter where there is none."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same numbers each time: bounds on rounding errors hold for most draws, not for all."""
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    """Where kernels can run here."""
    pytest.importorskip("triton")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
