"""What the machine is, read from trees that look like /proc and /sys of machines we do not have."""

import os
from pathlib import Path

import pytest

from headrace.base.hardware import probe

GIB = 1 << 30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def tree(root: Path, files: dict[str, str]) -> Path:
    """A root folder with /proc/meminfo and these."""
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def cgroup(root: Path, groups: str, files: dict[str, str]) -> tuple[int, int, int]:
    """Cores, memory and free memory in a group with these files."""
    named = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    found = probe(tree(root, {"proc/self/cgroup": groups, **named}))
    return found.cores, found.memory_bytes, found.free_bytes


def test_without_limits(tmp_path: Path):
    found = probe(tree(tmp_path, {}))
    assert (found.cores, found.memory_bytes, found.free_bytes) == (8, 16 * GIB, 8 * GIB)


def test_cgroup_v2_on_the_way_up(tmp_path: Path):
    files = {
        "slice/cpu.max": "250000 100000",
        "slice/app/cpu.max": "max 100000",
        "slice/app/memory.max": f"{4 * GIB}",
        "slice/app/memory.current": f"{3 * GIB}",
        "slice/app/memory.stat": f"anon 5\ninactive_file {2 * GIB}",
    }
    assert cgroup(tmp_path, "0::/slice/app", files) == (2, 4 * GIB, 3 * GIB)


def test_cgroup_v2_seen_from_inside_a_container(tmp_path: Path):
    files = {"cpu.max": "50000 100000", "memory.max": "max"}
    assert cgroup(tmp_path, "0::/", files) == (1, 16 * GIB, 8 * GIB)


def test_cgroup_v1(tmp_path: Path):
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu/docker/abc/cpu.cfs_quota_us": "300000",
        "cpu/docker/abc/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": f"{2 * GIB}",
        "memory/memory.usage_in_bytes": f"{3 * GIB}",
        "memory/docker/abc/memory.limit_in_bytes": f"{2**63 - 4096}",
    }
    groups = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n2:pids:/x"
    assert cgroup(tmp_path, groups, files) == (3, 2 * GIB, 0)


def test_the_processor(tmp_path: Path):
    text = "model name\t: Fast 9000\nflags\t\t: sse avx2\n\nmodel name\t: Fast 9000\nflags\t\t: sse avx2\n"
    found = probe(tree(tmp_path, {"proc/cpuinfo": text}))
    assert (found.cpu_name, found.cpu_flags) == ("Fast 9000", frozenset({"sse", "avx2"}))
    arm = probe(tree(tmp_path, {"proc/cpuinfo": "Features\t: asimd bf16"}))
    assert arm.cpu_flags == frozenset({"asimd", "bf16"})
    assert arm.cpu_name


def test_a_system_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 20}.__getitem__)
    found = probe(tmp_path)
    assert (found.cores, found.memory_bytes, found.free_bytes) == (1, 4 * GIB, 2 * GIB)


def test_a_system_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def sysconf(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", sysconf)
    assert probe(tmp_path).memory_bytes == 4 * GIB


def test_this_machine():
    found = probe()
    assert found.cores >= 1
    assert 0 < found.free_bytes <= found.memory_bytes
