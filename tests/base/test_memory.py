"""Memory that is mapped by itself goes back to the system as soon as it is freed."""

import ctypes
import subprocess
import sys

import pytest

from headrace.base.memory import LOADING, RUNNING, give_back, map_from

SCRIPT = """
import sys
from headrace.base.memory import map_from
map_from(int(sys.argv[1]))
held = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) << 10
size = 1 << 22
first = bytearray(b"x") * size  # what lies behind keeps the heap from shrinking
rest = [bytearray(b"x") * size for _ in range(16)]
keep = [bytes(100) for _ in range(1000)]
full = held()
rest.clear()
print(full - held())
"""


def freed(least: int) -> int:
    """Bytes that the system has back after 64 MB of pieces of 4 MB were freed."""
    run = [sys.executable, "-c", SCRIPT, str(least)]
    return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc"
)
def test_what_is_mapped_is_given_back():
    assert freed(1 << 20) > 60 << 20


def test_where_nothing_can_be_set_nothing_is_said():
    try:
        map_from(LOADING)
        give_back()
    finally:
        map_from(RUNNING)
