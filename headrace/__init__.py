"""Headrace runs large language models: `from headrace import LLM, SamplingParams`."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.api.async_llm import AsyncLLM
    from headrace.api.llm import LLM
    from headrace.api.outputs import CompletionOutput, RequestOutput
    from headrace.base.config import Config
    from headrace.engine.request import SamplingParams
    from headrace.engine.structured import GuidedDecodingParams, StructuredOutputsParams
    from headrace.optimize.entry import optimize

# Read by torch's thread pool when it is loaded: how long an idle thread spins before it sleeps. Its own default of
# 300,000 turns makes two threads several times slower than one where other programs want the same cores.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "CompletionOutput", "Config", "GuidedDecodingParams", "RequestOutput", "SamplingParams",
           "StructuredOutputsParams", "__version__", "optimize"]  # fmt: skip

# Looked up on first use, so that importing a torch-free part of the package loads no torch.
_HOME = {
    "LLM": "headrace.api.llm",
    "AsyncLLM": "headrace.api.async_llm",
    "CompletionOutput": "headrace.api.outputs",
    "RequestOutput": "headrace.api.outputs",
    "Config": "headrace.base.config",
    "SamplingParams": "headrace.engine.request",
    "StructuredOutputsParams": "headrace.engine.structured",
    "GuidedDecodingParams": "headrace.engine.structured",
    "optimize": "headrace.optimize",
}
_ENGINES = ("LLM", "AsyncLLM")
"""What brings an engine: processes that may have to compile its kernels import torch while this one does."""


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    if name in _ENGINES:
        import_module("headrace.kernels.ahead").begin_early()
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
