"""A GPU simulated on the CPU: whatever the engine does on a real one it does here, in Triton's interpreter.

For wiring, not for speed. What this knows of a real one:

- Tensors of the device are a type of their own. Tensors of the host cannot be mixed with them or given to kernels.
- The host enqueues, and nothing runs before the host waits, or all at once (`early`): pinned memory is read and written
  at either end of the time that a real one may take. Memory that nobody has written holds NaN or -1.
- Streams know of each other by events alone. What is on another stream than the first is done when somebody waits for
  it and not before, or, if these are `ahead`, before all that the first has not begun.
- `Gpu.waits` tells what made the host wait, besides events.
- What is enqueued during a capture does not run. Numbers stay as they were then, memory is read when the graph is
  replayed; what the capture made and nobody holds any more is spoilt before each replay. Waiting is an error there.

There is one device.
"""

import sys
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
Work = Callable[[], object]
Queue = deque[Work]
"""Of a stream: what is still to be done there, in order."""

DEVICE = torch.device("cuda", 0)
OPTIONS = {"num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion", "launch_pdl"}
"""What a launch may say besides a kernel's own arguments."""
ALIASES = {aten._unsafe_view.default, aten.lift_fresh.default}
"""What looks at the same memory, besides what torch calls a view."""


def wide_mm(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """A product whose sums are not rounded to the type of what is multiplied, which torch has for GPUs only."""
    return a.to(dtype) @ b.to(dtype)


STAND_INS: dict[Any, Callable[..., Any]] = {aten.mm.dtype: wide_mm}


class Remote(torch.Tensor):
    """A tensor of the device. Its memory is `memory`, which nothing but the device's work may read or write."""

    memory: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]
    device = property(lambda self: DEVICE)  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    is_cuda = property(lambda self: True)  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    is_meta = property(lambda self: False)  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Remote":
        # To torch's own code these are of the meta device, which needs no driver.
        with torch.inference_mode(False):
            made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
                cls,
                inner.shape,
                inner.stride(),
                inner.storage_offset(),
                dtype=inner.dtype,
                device=torch.device("meta"),
            )
        made.memory = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} in a thread of its own, which is not simulated")

    def data_ptr(self) -> int:
        return self.memory.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class Recording(NamedTuple):
    """Of a graph: its work, the memory made during its capture, and all tensors that were seen there."""

    works: list[Work]
    made: list[Tensor]
    seen: list["ref[Remote]"]


class Gpu(TorchDispatchMode):
    """The device; as a context, torch's calls of this thread reach it.

    waits     functions that had the host wait until all work was done, in order
    early     work is done as soon as it is enqueued, not as late as can be
    ahead     so it is on other streams than the first
    queues    of streams, the first one first
    queue     of the stream that work is for
    launched  kernels, as often as they were launched; a replay launches nothing
    replays   how often graphs were replayed
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.early = self.ahead = False
        self.launched = Counter[str]()
        self.replays = 0
        self.queues = [Queue()]
        self.queue = self.queues[0]
        self._recording: Recording | None = None
        # Whether a call is being made of simpler ones, which say meta where they mean the device: see Remote.
        self._apart = False
        # Held, so that no other memory gets their addresses.
        self._pinned: dict[int, torch.UntypedStorage] = {}

    # -- queues

    def enqueue(self, work: Work, queue: Queue | None = None) -> None:
        """To be done after all before it; in a capture, whenever the graph is replayed."""
        queue = self.queue if queue is None else queue
        (queue if self._recording is None else self._recording.works).append(work)
        if self.early or (self.ahead and queue is not self.queues[0]):
            self.run(queue)

    def run(self, queue: Queue, until: Callable[[], bool] | None = None) -> None:
        """Do what is enqueued there: all of it, or until something holds."""
        with _disable_current_modes(), torch.inference_mode():
            while queue if until is None else not until():
                queue.popleft()()

    def wait(self, why: str, *queues: Queue) -> None:
        """The host waits until the device has done all that is enqueued in these, or where work is enqueued now."""
        if self._recording is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {why}")
        self.waits.append(_asker())
        for queue in queues or (self.queue,):
            self.run(queue)

    def launch(self, kernel: Callable[..., None], executor: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """A kernel of Triton's: `kernel` interprets it."""
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and not isinstance(leaf, Remote):
                raise ValueError("a pointer argument cannot be accessed from Triton (cpu tensor?)")
        if unknown := kwargs.keys() - OPTIONS - set(executor.arg_names):
            raise KeyError(f"{executor.fn.__name__} has no arguments {unknown}")
        self.launched[executor.fn.__name__] += 1
        args, kwargs = _inner((args, kwargs))
        kwargs |= {"CODE": None} if "CODE" in kwargs else {}  # no assembly
        self.enqueue(lambda: kernel(executor, *args, **kwargs))

    # -- graphs

    @property
    def recording(self) -> bool:
        """Whether work is recorded, and not done."""
        return self._recording is not None

    def begin(self) -> None:
        """Record from now on."""
        assert not self.recording
        self._recording = Recording([], [], [])

    def end(self) -> "Recording":
        """What was recorded. Memory that is held by no tensor any more is marked as lost."""
        assert self._recording is not None
        found, self._recording = self._recording, None
        alive = [tensor for each in found.seen if (tensor := each()) is not None]
        held = {tensor.memory.untyped_storage().data_ptr() for tensor in alive}
        lost = [inner for inner in found.made if inner.untyped_storage().data_ptr() not in held]
        return found._replace(made=lost)

    def replay(self, recording: "Recording") -> None:
        """Do what was recorded, with what now lies where it reads."""
        self.replays += 1
        for work in (lambda: [_spoil(inner) for inner in recording.made], *recording.works):
            self.enqueue(work)

    # -- torch's calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        remote = any(isinstance(leaf, Remote) for leaf in leaves)
        places = {leaf.type for leaf in leaves if isinstance(leaf, torch.device)}
        # A number that is assigned to elements becomes a tensor in the same way.
        inside = self._apart or func is aten.scalar_tensor.default
        if not (remote or "cuda" in places or (inside and "meta" in places)):
            return self._on_host(func, args, kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            apart, self._apart = self._apart, True
            try:
                with self:
                    return func.decompose(*args, **kwargs)
            finally:
                self._apart = apart
        if func is aten.copy_.default:
            return self._copy(*args, **kwargs)
        if func is aten._to_copy.default:
            return self._to(*args, **kwargs)
        return self._on_device(func, args, kwargs)

    def _on_host(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        packet = func.overloadpacket
        if packet is aten.is_pinned:
            return self._is_pinned(args[0])
        if packet in (aten.pin_memory, aten._pin_memory):
            return self._pin(args[0].clone())
        if kwargs.get("pin_memory"):
            return self._pin(func(*args, **{**kwargs, "pin_memory": False}))
        return func(*args, **kwargs)

    def _on_device(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        args, kwargs, whole = *_inner((args, kwargs), func), {"args": args, "kwargs": kwargs}
        run: Any = STAND_INS.get(func, func)
        if func.is_view or func in ALIASES:
            return tree_map_only(Tensor, self._remote, func(*args, **kwargs))
        if func._schema.is_mutable:
            self.enqueue(lambda: run(*args, **kwargs))
            return _written(func, **whole)
        try:
            shapes = run(*_meta(args), **_meta(kwargs))
        except (NotImplementedError, RuntimeError):  # what comes out depends on what the device computes
            self.wait(func.name())
            return tree_map_only(Tensor, self._remote, run(*args, **kwargs))
        made = tree_map_only(Tensor, _unwritten, shapes)
        if "empty" not in func.name():
            self.enqueue(lambda: _write(made, run(*args, **kwargs)))
        return tree_map_only(Tensor, self._new, made)

    def _remote(self, inner: Tensor) -> Remote:
        found = Remote(inner)
        if self._recording is not None:
            self._recording.seen.append(ref(found))
        return found

    def _new(self, inner: Tensor) -> Remote:
        if self._recording is not None:
            self._recording.made.append(inner)
        return self._remote(inner)

    # -- from and to the host

    def _copy(self, into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if not isinstance(into, Remote):
            assert isinstance(source, Remote)
            self._fetch(into, source.memory, non_blocking and self._is_pinned(into))
        elif isinstance(source, Remote):
            self.enqueue(lambda: into.memory.copy_(source.memory))
        else:
            self._send(into.memory, source, non_blocking)
        return into

    def _to(
        self, source: Tensor, *, dtype: Any = None, device: Any = None, non_blocking: bool = False, **_: Any
    ) -> Tensor:
        held = source.memory if isinstance(source, Remote) else source
        made = torch.empty_like(held, dtype=dtype or held.dtype)
        if isinstance(source, Remote) and device is not None and torch.device(device).type == "cpu":
            self._fetch(self._pin(made) if non_blocking else made, held, non_blocking)
            return made
        if isinstance(source, Remote):
            self.enqueue(lambda: made.copy_(held))
        else:
            self._send(made, source, non_blocking)
        return self._new(made)

    def _send(self, into: Tensor, source: Tensor, non_blocking: bool) -> None:
        if non_blocking and self._is_pinned(source):
            self.enqueue(lambda: into.copy_(source))
            return
        if self._recording is not None:
            raise RuntimeError("a graph cannot read memory that is not pinned")
        now = source.clone()
        self.enqueue(lambda: into.copy_(now))
        if not non_blocking:
            self.wait("copy to the device")

    def _fetch(self, into: Tensor, source: Tensor, pinned: bool) -> None:
        self.enqueue(lambda: into.copy_(source))
        if not pinned:
            self.wait("copy to the host")

    def _pin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._pinned[storage.data_ptr()] = storage
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned


def _inner(given: Any, func: Any = None) -> Any:
    """The same with the device's memory in the place of its tensors, and numbers as they are now."""

    def memory(tensor: Tensor) -> Tensor:
        if isinstance(tensor, Remote):
            return tensor.memory
        if tensor.dim():
            raise RuntimeError(f"{func}: tensors on cuda:0 and cpu; expected all to be on one device")
        return tensor.clone()

    moved = tree_map_only(Tensor, memory, given)
    return tree_map_only(torch.device, lambda _: torch.device("cpu"), moved)


def _asker() -> str:
    """The function of ours that called, or whatever called ours."""
    frame = sys._getframe()
    while frame.f_back is not None and not frame.f_globals["__name__"].startswith("headrace."):
        frame = frame.f_back
    return f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"


def _meta(given: Any) -> Any:
    def shape(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    return tree_map_only(torch.device, lambda _: torch.device("meta"), tree_map_only(Tensor, shape, given))


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What a call that writes into its arguments gives back."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    found = [
        given[a.name] for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write
    ]
    return found[0] if len(found) == 1 else tuple(found)


def _unwritten(shape: Tensor) -> Tensor:
    return _spoil(torch.empty_strided(shape.shape, shape.stride(), dtype=shape.dtype, device="cpu"))


def _spoil(tensor: Tensor) -> Tensor:
    if tensor.itemsize == 1:
        return tensor
    return tensor.fill_(float("nan") if tensor.is_floating_point() else -1)


def _write(made: Any, found: Any) -> None:
    for into, value in zip(tree_leaves(made), tree_leaves(found), strict=True):
        if isinstance(into, Tensor):
            into.copy_(value)
