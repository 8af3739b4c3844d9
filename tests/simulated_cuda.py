"""What is asked of torch.cuda and of Triton, answered by a simulated GPU: the fixture `gpu`, and `interpreted`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from headrace.kernels import configs, rules
from tests.kernels.interpreted import interpreted as interpreted
from tests.simulated_gpu import DEVICE, Gpu, Queue, Recording

CAPABILITY = 8, 9
"""With 8-bit floats, and without kernels in Gluon, which Triton does not interpret."""
PROPERTIES = SimpleNamespace(total_memory=1 << 34, multi_processor_count=2)


class Graph:
    """torch.cuda.CUDAGraph."""

    def __init__(self, gpu: Gpu):
        self.gpu = gpu
        self.recording: Recording | None = None

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        self.gpu.begin()

    def capture_end(self) -> None:
        self.recording = self.gpu.end()

    def replay(self) -> None:
        assert self.recording is not None
        self.gpu.replay(self.recording)


class Event:
    """torch.cuda.Event."""

    def __init__(self, gpu: Gpu):
        self.gpu, self.queue = gpu, gpu.queue
        self.recorded = self.come = 0

    def record(self, stream: "Stream | None" = None) -> None:
        def come() -> None:
            self.come = number

        self.queue = self.gpu.queue if stream is None else stream.queue
        self.recorded = number = self.recorded + 1
        self.gpu.enqueue(come, self.queue)

    def wait(self, stream: "Stream | None" = None) -> None:
        self.gpu.enqueue(self._until(), None if stream is None else stream.queue)

    def synchronize(self) -> None:
        self._until()()

    def _until(self) -> Callable[[], None]:
        """What does all that was enqueued before it when it was recorded last."""
        queue, number = self.queue, self.recorded
        return lambda: self.gpu.run(queue, until=lambda: self.come >= number)


class Stream:
    """torch.cuda.Stream: that of a queue, or a new one."""

    def __init__(self, gpu: Gpu, queue: Queue | None = None):
        self.gpu, self.queue = gpu, Queue() if queue is None else queue
        if queue is None:
            gpu.queues.append(self.queue)

    def wait_stream(self, stream: "Stream") -> None:
        event = Event(self.gpu)
        event.record(stream)
        event.wait(self)

    def synchronize(self) -> None:
        self.gpu.wait("a stream", self.queue)

    @contextmanager
    def current(self) -> Iterator[None]:
        kept, self.gpu.queue = self.gpu.queue, self.queue
        try:
            yield
        finally:
            self.gpu.queue = kept


def _numbered(device: str | torch.device) -> torch.device:
    """The only GPU where one without a number is meant, which torch would ask a driver for."""
    return DEVICE if (device := torch.device(device)).type == "cuda" else device


@pytest.fixture
def gpu(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """One, as long as the test runs; skips where there is a real one."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    import triton.language
    import triton.runtime.interpreter as interpreter

    from headrace.kernels.gpu.product import split_counters

    made = Gpu()
    kernel, tensor, to = interpreter.GridExecutor.__call__, torch.tensor, torch.Tensor.to
    cuda: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "mem_get_info": lambda device=None: (1 << 33, 1 << 34),
        "get_device_properties": lambda device=None: PROPERTIES,
        "get_device_capability": lambda device=None: CAPABILITY,
        "synchronize": lambda device=None: made.wait("torch.cuda.synchronize", *made.queues),
        "is_current_stream_capturing": lambda: made.recording,
        "graph_pool_handle": lambda: None,
        "CUDAGraph": lambda: Graph(made),
        "Event": lambda: Event(made),
        "Stream": lambda device=None: Stream(made),
        "current_stream": lambda device=None: Stream(made, made.queue),
        "stream": lambda stream: nullcontext() if stream is None else stream.current(),
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)

    def there(data: Any, *, device: Any = None, **more: Any) -> Tensor:
        here = tensor(data, device=None if device is None else "cpu", **more)
        return here if device is None else here.to(device)

    def numbered(self: Tensor, *args: Any, **more: Any) -> Tensor:
        args, more = tree_map_only((str, torch.device), _numbered, (args, more))
        return to(self, *args, **more)

    monkeypatch.setattr(torch, "tensor", there)
    monkeypatch.setattr(torch.Tensor, "to", numbered)
    monkeypatch.setattr(
        interpreter.GridExecutor,
        "__call__",
        lambda self, *args, **kwargs: made.launch(kernel, self, args, kwargs),
    )
    patch, language = interpreter._patch_lang, triton.language

    def patch_once(function: Any) -> Any:
        """As Triton's, which does so again in every function that a kernel calls: a quarter of all the time."""
        modules = [m for m in (language, language.core) if m in function.__globals__.values()]
        patched = not any(language.core.is_builtin(module.load) for module in modules)
        return interpreter._LangPatchScope() if patched else patch(function)

    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
    monkeypatch.setitem(rules.MULTIPROCESSORS, CAPABILITY, PROPERTIES.multi_processor_count)
    caches = configs.capability, configs.multiprocessors, split_counters
    with made:
        yield made
    for cache in caches:
        cache.cache_clear()
