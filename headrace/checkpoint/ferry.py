"""From a mapped file to a GPU: several threads, each through pinned memory of its own."""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import local

import numpy as np
import torch
from torch import Tensor

WORKERS = 8
CHUNK = 1 << 23
"""Bytes that a thread carries at once."""


class Ferry:
    """Copies tensors from host memory. The driver alone copies what is not pinned with one thread, at 8 GB/s."""

    def __init__(self) -> None:
        self._own = local()

    def carry(self, found: Tensor, into: Tensor) -> Tensor:
        """`into`, with what was found; it is there when this returns."""
        plain = found.dtype == into.dtype and found.is_contiguous() and into.is_contiguous()
        if not (into.is_cuda and plain and found.nbytes > CHUNK):
            return into.copy_(found)
        torch.cuda.current_stream(into.device).synchronize()  # whoever had this memory before is done with it
        here, there = found.view(-1).view(torch.uint8), into.view(-1).view(torch.uint8)
        list(self._pool.map(self._send, here.split(CHUNK), there.split(CHUNK)))
        return into

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(WORKERS, "headrace-ferry")

    def _send(self, here: Tensor, there: Tensor) -> None:
        own = self._own
        if not hasattr(own, "stream"):
            own.stream = torch.cuda.Stream(there.device)
            own.pinned = torch.empty(CHUNK, dtype=torch.uint8, pin_memory=True)
        pinned = own.pinned[: len(here)]
        np.copyto(pinned.numpy(), here.numpy())  # lets other threads run, unlike torch keeps to one
        with torch.inference_mode(), torch.cuda.stream(own.stream):
            there.copy_(pinned, non_blocking=True)
            own.stream.synchronize()
