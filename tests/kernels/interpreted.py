"""What Triton's interpreter lacks for kernels of 8 bits: conversions to float8 that round, and our assembly."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

FLOAT8 = "fp8e4nv"


def eight(values: np.ndarray, source: Any) -> np.ndarray:
    """Bits of the nearest float8 numbers."""
    given = torch.from_numpy(np.ascontiguousarray(values).copy())
    given = given.view(torch.bfloat16) if str(source) == "bf16" else given
    return given.float().to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def floats(bits: np.ndarray) -> np.ndarray:
    """What float8 numbers stand for."""
    given = np.ascontiguousarray(bits).view(np.uint8)
    return torch.from_numpy(given.copy()).view(torch.float8_e4m3fn).float().numpy()


def bytes_of(words: np.ndarray) -> np.ndarray:
    """The four bytes of each word."""
    return np.ascontiguousarray(words[..., None]).view(np.int8)


def dot16(asm: str, values: list[np.ndarray]) -> np.ndarray:
    """Sixteen weights in four words times sixteen inputs, in words of four bytes or of two halves."""
    weights = np.concatenate([bytes_of(word) for word in values[:4]], -1)
    if "dp4a" in asm:
        inputs = np.concatenate([bytes_of(word) for word in values[4:]], -1)
        return (weights.astype(np.int32) * inputs.astype(np.int32)).sum(-1, dtype=np.int32)
    halves = [np.ascontiguousarray(word[..., None]).view(np.float16) for word in values[4:]]
    wide = floats(weights) if "e4m3x2" in asm else weights
    return (wide.astype(np.float32) * np.concatenate(halves, -1).astype(np.float32)).sum(-1, dtype=np.float32)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on a GPU."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        return
    import triton.runtime.interpreter as module

    convert = module._convert_float

    def right(values: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        if str(target) == FLOAT8:
            return eight(values, source)
        if str(source) == FLOAT8 and str(target) in ("fp32", "fp16"):
            kind = np.float32 if str(target) == "fp32" else np.float16
            bits = np.uint32 if str(target) == "fp32" else np.uint16
            return floats(values).astype(kind).view(bits).reshape(values.shape)
        return convert(values, source, target, rounding)

    def assembly(self: Any, asm: str, constraints: str, values: list[Any], *others: Any) -> Any:
        made = dot16(asm, [value.data for value in values])
        scalar = module.tl.int32 if made.dtype == np.int32 else module.tl.float32
        return SimpleNamespace(get_result=lambda index: module.TensorHandle(made, scalar))

    monkeypatch.setattr(module, "_convert_float", right)
    monkeypatch.setattr(module.InterpreterBuilder, "create_inline_asm", assembly)


@pytest.fixture
def even_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a product has the same bits wherever it is in its tile, as on a GPU; numpy's library has others there on
    some processors."""

    def matmul(a: np.ndarray, b: np.ndarray, dtype: Any = None) -> np.ndarray:
        return (a[..., :, :, None].astype(dtype) * b[..., None, :, :].astype(dtype)).sum(-2)

    monkeypatch.setattr(np, "matmul", matmul)
