"""What this machine is: cores and memory we may really use, container limits included."""

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2**63


@dataclass(frozen=True, slots=True)
class Hardware:
    """One machine. `memory_bytes` and `free_bytes` are those of the container where there is one."""

    cores: int
    memory_bytes: int
    free_bytes: int
    cpu_name: str = ""
    cpu_flags: frozenset[str] = frozenset()


def probe(root: Path = Path("/")) -> Hardware:
    """Look at the machine once, except for its GPUs. `root` is where /proc and /sys are found; tests give a folder."""
    groups = _groups(root)
    total, free = _memory(root)
    for limit, used in _memory_limits(groups):
        total, free = min(total, limit), min(free, max(0, limit - used))
    name, flags = _cpu(root)
    return Hardware(cores=_cores(groups), memory_bytes=total, free_bytes=free, cpu_name=name, cpu_flags=flags)


def cores() -> int:
    """Cores that this process may use; see Hardware."""
    return _cores(_groups(Path("/")))


def _cores(groups: list[Path]) -> int:
    """Cores we may be scheduled on, cut to the whole cores that a CPU quota pays for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota in _quotas(groups):
        cores = min(cores, max(1, int(quota)))
    return cores


def _quotas(groups: list[Path]) -> Iterator[float]:
    for group in groups:
        quota, period = _numbers(group / "cpu.max", 2)  # v2: "200000 100000" or "max 100000"
        if not quota:
            quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            yield quota / period


def _memory_limits(groups: list[Path]) -> Iterator[tuple[int, int]]:
    """(limit, what is used and cannot be dropped), for every group on the way up that has a limit."""
    for group in groups:
        for limit_file, used_file, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _number(group / limit_file)
            if limit is not None and limit < _UNLIMITED:
                used = _number(group / used_file) or 0
                yield limit, max(0, used - _table(group / "memory.stat").get(cached, 0))


def _groups(root: Path) -> list[Path]:
    """The folders of our control groups (v1 and v2), each followed by its parents."""
    mount = root / "sys/fs/cgroup"
    found: list[Path] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and not {"cpu", "memory"} & set(controllers.split(",")):
            continue
        # v1 mounts each controller under its own name; inside a container our path may not be visible
        tops = {mount / name for name in [controllers, *controllers.split(",")]}
        for top in sorted(tops):
            group = top / path.strip().lstrip("/")
            found += [g for g in (group, *group.parents) if g.is_relative_to(top) and g not in found]
    return found or [mount]


def _memory(root: Path) -> tuple[int, int]:
    """(total, available) in bytes, of the whole machine."""
    table = _table(root / "proc/meminfo", unit=1024)
    if "MemTotal" in table:
        return table["MemTotal"], table.get("MemAvailable", table.get("MemFree", 0))
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        total = 4 << 30  # a system that says nothing; small enough to be true
    return total, total // 2


def _cpu(root: Path) -> tuple[str, frozenset[str]]:
    text = _read(root / "proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return (
        name.group(1).strip() if name else platform.processor() or platform.machine(),
        frozenset(flags.group(1).split()) if flags else frozenset(),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _numbers(path: Path, count: int) -> list[int | None]:
    words = _read(path).split()
    return [int(w) if w.lstrip("-").isdecimal() else None for w in (words + [""] * count)[:count]]


def _number(path: Path) -> int | None:
    return _numbers(path, 1)[0]


def _table(path: Path, unit: int = 1) -> dict[str, int]:
    """A file of `name number` lines, such as memory.stat or /proc/meminfo."""
    found = re.findall(r"^([\w()]+):?\s+(\d+)", _read(path), re.MULTILINE)
    return {name: int(number) * unit for name, number in found}
