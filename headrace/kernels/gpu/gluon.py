"""What Gluon, Triton's lower language, calls by other names in other versions: see configs.GLUON."""

from triton.experimental.gluon import language as gl

_Memory = gl.shared_memory_descriptor
reinterpret = _Memory.reinterpret if hasattr(_Memory, "reinterpret") else _Memory._reinterpret
"""(memory, dtype, shape, layout): shared memory seen otherwise."""
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
"""All threads of a partition meet."""
