"""Gives memory that was freed back to the system, for those who count what a process holds."""

import ctypes
import logging

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of settings in glibc's malloc.h."""
LOADING, RUNNING = 1 << 23, 1 << 25
"""Bytes from which memory is mapped, and given back as soon as it is freed. Running wants it kept: mapping it anew for
every step costs more than filling it. By itself glibc goes from one to the other when something is freed, so that what
is loaded afterwards lies in pieces: some starts took 940 MB at most where others took 650."""


def map_from(least: int) -> None:
    """Map pieces of memory of at least so many bytes each by itself. No effect where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, least)
        mallopt(M_TRIM_THRESHOLD, 2 * least)
    except (AttributeError, OSError, TypeError):
        log.debug("no mallopt here")


def give_back() -> None:
    """Return to the system what was freed. C libraries without such a function do it by themselves, or never."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        log.debug("no malloc_trim here")
