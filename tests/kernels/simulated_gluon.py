"""Kernels in Gluon, which has no interpreter, run as Python: what `gpu/ring.py` uses of the language, and no more.

Programs run one after the other, in any order, their parts side by side, each as one thread. Copies arrive as soon as
they are asked for, products read their operands when somebody waits for them: a place in shared memory that is filled
too early or read too late shows in the numbers, and so does one that nobody has filled.
"""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition, local
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from headrace.kernels import configs

MEMORY = 232_448
"""Bytes that a program may have."""
PATIENCE = 30.0
"""Seconds after which a barrier is waited for in vain."""
LAUNCH = {"num_warps", "launch_pdl", "maxnreg"}
"""What a launch says besides a kernel's own arguments."""
program = local()
"""`index` and `count` of the program that a thread is part of, its shared `memory` and its products on their `way`."""


class Value(Tensor):
    """Numbers that never change, as a kernel's are."""

    def __iadd__(self, other: Any) -> Any:
        return self + other

    def __imul__(self, other: Any) -> Any:
        return self * other


def value(x: Any) -> Value:
    """Of a number or a tensor."""
    return torch.as_tensor(x).as_subclass(Value)


class Pointer(SimpleNamespace):
    """Into a tensor's elements."""

    def __add__(self, further: Any) -> "Pointer":
        return Pointer(to=self.to, at=self.at + further, dtype=self.dtype)


def load(ptr: Pointer, mask: Any = True, other: Any = 0, cache_modifier: str = "") -> Value:
    live = torch.as_tensor(mask).expand(ptr.at.shape)
    found = ptr.to[ptr.at.where(live, 0).as_subclass(Tensor)]
    return value(found.where(live, other).to(ptr.to.dtype))


def store(ptr: Pointer, new: Any, mask: Any = True) -> None:
    live = torch.as_tensor(mask).expand(ptr.at.shape).as_subclass(Tensor)
    ptr.to[ptr.at[live]] = torch.as_tensor(new).expand(ptr.at.shape)[live].to(ptr.to.dtype)


def atomic_add(ptr: Pointer, more: int, sem: str, scope: str) -> Value:
    before = load(ptr)
    store(ptr, before + more)
    return before


class Barrier:
    """Of shared memory: a phase ends with the arrivals that it counts and the bytes that it expects."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.count = self.missing = self.bytes = self.phase = 0

    def settle(self, arrivals: int, size: int) -> None:
        with self.changed:
            self.missing -= arrivals
            self.bytes += size
            assert self.missing >= 0, "more arrivals than it counts"
            if not self.missing and not self.bytes:
                self.missing, self.phase = self.count, self.phase ^ 1
                self.changed.notify_all()

    def wait(self, phase: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.phase != phase, PATIENCE), "nobody arrives"


def init(barrier: Barrier, count: int) -> None:
    barrier.count = barrier.missing = count


class Shared:
    """Shared memory: numbers that nobody has written, or barriers."""

    def __init__(self, inner: Any):
        self.inner = inner

    def index(self, i: Any) -> Any:
        found = self.inner[int(i)]
        return found if isinstance(found, Barrier) else Shared(found)

    def permute(self, order: tuple[int, ...]) -> "Shared":
        return Shared(self.inner.permute(order))


def allocate(dtype: Any, shape: Sequence[int], layout: Any) -> Shared:
    if layout == "barrier":
        return Shared([Barrier() for _ in range(shape[0])])
    made = torch.empty(*shape, dtype=dtype.torch)
    made.view(torch.uint8).fill_(0x7F)  # in most types no number, in others one that shows
    program.memory[0] += made.nbytes
    assert program.memory[0] <= MEMORY
    return Shared(made)


def copy(rows: Any, corner: Sequence[Any], barrier: Barrier, to: Shared) -> None:
    (row, column), (height, width) = map(int, corner), rows.inner.block_shape
    assert height <= 256
    assert width * to.inner.itemsize == 128, "a box is as wide as its swizzle"
    found = rows.inner.base[row : row + height, column : column + width]
    to.inner.zero_()
    to.inner[: found.shape[0], : found.shape[1]] = found
    barrier.settle(0, -to.inner.nbytes)


def mma(a: Shared, b: Shared, acc: Value, is_async: bool) -> Value:
    assert is_async
    program.way.append((a.inner, b.inner, acc))
    return acc


def mma_wait(most: int, deps: Sequence[Value]) -> Any:
    while len(program.way) > most:
        a, b, acc = program.way.pop(0)
        acc.as_subclass(Tensor).add_(a.to(acc.dtype) @ b.to(acc.dtype))
    return deps[0] if len(deps) == 1 else deps


def warp_specialize(parts: Sequence[Any], warps: Sequence[int], registers: Sequence[int]) -> None:
    assert len(parts) == len(warps) + 1 == len(registers) + 1
    here = vars(program).copy()

    def run(part: Callable[..., None], args: Sequence[Any]) -> None:
        vars(program).update(here, way=[])
        part(*args)
        assert not program.way, "products that nobody waited for"

    with ThreadPoolExecutor(len(parts)) as pool:
        for job in [pool.submit(run, *part) for part in parts]:
            job.result()


LANGUAGE = SimpleNamespace(
    float32=torch.float32, int64=torch.int64, load=load, store=store, atomic_add=atomic_add, exp=torch.exp,
    program_id=lambda axis: value(program.index), num_programs=lambda axis: program.count, static_range=range,
    arange=lambda start, stop, layout: value(torch.arange(start, stop)),
    zeros=lambda shape, dtype, layout: value(torch.zeros(shape, dtype=dtype)),
    minimum=lambda a, b: value(torch.minimum(torch.as_tensor(a), torch.as_tensor(b))),
    maximum=lambda a, b: value(torch.maximum(torch.as_tensor(a), torch.as_tensor(b))),
    where=lambda so, a, b: value(torch.where(torch.as_tensor(so), a, b)),
    convert_layout=lambda x, layout: x, expand_dims=lambda x, axis: x.unsqueeze(axis),
    allocate_shared_memory=allocate, warp_specialize=warp_specialize, NVMMASharedLayout=lambda **_: None,
    NVMMADistributedLayout=lambda *_: None, SliceLayout=lambda *_: None, BlockedLayout=lambda *_: None,
)  # fmt: skip
MBARRIER = SimpleNamespace(
    MBarrierLayout=lambda: "barrier", init=init, wait=lambda barrier, phase: barrier.wait(int(phase)),
    expect=lambda barrier, size: barrier.settle(1, size),
    arrive=lambda barrier, count, pred=True: barrier.settle(count, 0) if pred else None,
)  # fmt: skip
NAMES = {
    "gl": LANGUAGE, "mbarrier": MBARRIER, "tma": SimpleNamespace(async_copy_global_to_shared=copy),
    "warpgroup_mma": mma, "warpgroup_mma_wait": mma_wait, "fence_async_shared": lambda: None,
    "barrier": lambda: None, "wait": lambda pdl: None,
}  # fmt: skip


def argument(x: Any) -> Any:
    """As a kernel sees it."""
    if isinstance(x, Tensor):
        return Pointer(to=x.view(-1), at=torch.tensor(0), dtype=SimpleNamespace(element_ty=x.dtype))
    if hasattr(x, "block_shape"):
        kind = SimpleNamespace(torch=x.base.dtype, primitive_bitwidth=8 * x.base.itemsize)
        return SimpleNamespace(inner=x, dtype=kind)
    return x


class Kernel:
    """Launched as those of Triton are."""

    def __init__(self, function: Callable[..., None]):
        self.function = function

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*args: Any, **named: Any) -> None:
            seen = [argument(x) for x in args]
            options = {name: x for name, x in named.items() if name not in LAUNCH}
            for index in random.sample(range(grid[0]), grid[0]):
                vars(program).update(index=index, count=grid[0], memory=[0])
                self.function(*seen, **options)

        return launch


def in_python(module: ModuleType, names: dict[str, Any]) -> dict[str, Any]:
    """The module's names with its kernels' functions, and those that they call, as Python's."""
    made = {**vars(module), **names}
    for name, found in vars(module).items():
        if name in names or not hasattr(found, "fn"):
            continue
        home = made if found.fn.__module__ == module.__name__ else {**found.fn.__globals__, **names}
        made[name] = FunctionType(found.fn.__code__, home, name, found.fn.__defaults__)
    return made


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """`ring` of gpu/ring.py: on a GPU of its kind as it is, where there is none in Python."""
    if torch.cuda.is_available() and not configs.rings(configs.capability(torch.device("cuda"))):
        pytest.skip("needs compute capability 9.0 and a Triton whose Gluon is known")
    module = pytest.importorskip("headrace.kernels.gpu.ring", exc_type=ImportError)
    if not torch.cuda.is_available():
        random.seed(0)
        monkeypatch.setattr(configs, "multiprocessors", lambda device: 5)
        monkeypatch.setattr(module, "ring_kernel", Kernel(in_python(module, NAMES)["ring_kernel"]))
    return module.ring
