"""Kernels compiled by other processes, for a GPU that need not be there, are those that launches ask for."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from headrace.kernels import ahead

SCRIPT = """
import torch, triton
from threading import Thread
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from headrace.kernels.ahead import Compilers, noted
from headrace.kernels.gpu.norm import norm_kernel, normalize


class NoGpu:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = get_current_stream = staticmethod(lambda *device: 0)


driver.set_active(NoGpu())
compilers = Compilers()
x, weight = torch.ones(3, 64, dtype=torch.bfloat16), torch.ones(64, dtype=torch.bfloat16)
elsewhere = []
told = []
with noted(told.append) as loads:
    for rows in (3, 3, 2, 1):  # of which two are alike
        normalize(x[:rows], None, weight, 1e-6, 0.0, True)
    other = Thread(target=lambda: elsewhere.append(norm_kernel.warmup(
        x, x, weight, x, x, 16, 64, 64, 1e-6, 0.0, N=64, ROWS=1, BLOCK=64, ADD=False, PDL=False, grid=(1,))))
    other.start()
    other.join()
for job in told:
    compilers.compile(job)
assert compilers.wait(120)
hits = []
triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
for job in told:  # as a launch would, by what another process may have changed
    norm_kernel.warmup(
        x, x, weight, x, x, int(job.constants.get((5,), 3)), 64, 64, 1e-6, 0.0,
        N=64, ROWS=16, BLOCK=64, ADD=False, PDL=True, num_warps=4, launch_pdl=True, grid=(1,))
print(len(told), len(loads), hits, len(elsewhere), elsewhere[0] is not None)
"""


def test_launches_find_what_was_compiled_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another thread's kernel is compiled as ever while this one's are noted."""
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[0] == "2 2 [True, True] 1 True"


ORDER = """
import sys
from headrace.kernels.ahead import settle
from headrace.kernels.gpu import w4a16_wide as module
from triton.runtime.jit import JITCallable

asked, cache_key = [], JITCallable.cache_key
JITCallable.cache_key = property(lambda function: (asked.append(function), cache_key.fget(function))[1])
settle(module)
every = [found for found in vars(module).values() if isinstance(found, JITCallable)]
elsewhere = [found for found in every if found.fn.__module__ != module.__name__]
print(len(every) > len(elsewhere) > 0, all(found.hash for found in every), asked[0].fn.__module__)
"""


def test_functions_are_hashed_in_one_order(monkeypatch: pytest.MonkeyPatch):
    """Those of other modules first, whichever kernel is launched first."""
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    ran = subprocess.run([sys.executable, "-c", ORDER], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["True", "True", "headrace.kernels.gpu.gluon"]


RING = """
from ast import literal_eval
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from headrace.kernels import ahead, configs
from headrace.kernels.choices import Ring
from headrace.kernels.gpu.matmul import Fusion, product


class NoGpu:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = get_current_stream = staticmethod(lambda *device: 0)


driver.set_active(NoGpu())
configs.skinny = lambda *case: Ring(256, 16, 4)
configs.multiprocessors = lambda device: 132
told = []
with ahead.noted(told.append):
    for tokens in (2, 9):
        product(torch.ones(tokens, 64).half(), torch.ones(512, 64).half(), Fusion(gated=True))
job = ahead.Job(*literal_eval(repr(tuple(told[0]))))
print(len(told), job.module, job.name, job == told[0])
"""


def test_a_ring_that_a_table_names_is_noted(monkeypatch: pytest.MonkeyPatch):
    """One kernel for all numbers of tokens that its tiles hold, told in literals."""
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    ran = subprocess.run([sys.executable, "-c", RING], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["1", "headrace.kernels.gpu.ring", "ring_kernel", "True"]


def test_a_note_is_of_the_facts_and_lies_in_tritons_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    note = ahead.note_of("model", 1)
    assert note == ahead.note_of("model", 1)
    assert note != ahead.note_of("model", 2)
    assert note.is_relative_to(tmp_path)


def test_a_note_is_void_once_a_kernel_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "norm.py").write_text("a")
    monkeypatch.setattr(ahead, "KERNELS", tmp_path)
    before = ahead.note_of()
    (tmp_path / "norm.py").write_text("ab")
    assert ahead.note_of() != before


def test_compilers_that_died_are_no_fault(monkeypatch: pytest.MonkeyPatch):
    """What they leave is compiled when it is launched."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    compilers = ahead.Compilers()
    for _ in range(20):
        compilers.compile(ahead.Job("nowhere", "kernel", None, {"x": "i32" * 50_000}, {}, {}, {}))
    assert compilers.wait(120) is False


EARLY = """
import sys
from pathlib import Path
from headrace.kernels import ahead

ahead.GPU = Path(sys.argv[1])
from headrace import SamplingParams
assert not ahead._STARTED
from headrace import LLM
made = ahead.started()
print(made is not None, "torch" in sys.modules)
if made is not None:
    print(made.alive, ahead.started())
    made.stop()
    print(made.alive)
ahead.have(ahead.note_of("what an engine needs"))
"""


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There seems to be one, and nobody has asked for an engine yet."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name in ("TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ahead, "GPU", Path("/dev/null"))
    monkeypatch.setattr(ahead, "_ASKED", [])
    monkeypatch.setattr(ahead, "_STARTED", [])


def test_who_asks_for_an_engine_first_has_compilers_begin(gpu: None):
    ran = subprocess.run([sys.executable, "-c", EARLY, "/dev/null"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["True True", "True None", "False"]


def test_who_asks_again_needs_none(gpu: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ahead, "Compilers", lambda: SimpleNamespace(alive=True))
    begun = []
    for words in (["a model"], ["a model"], ["another model"]):
        ahead._ASKED.clear()  # as in a new process
        ahead.begin_early(words)
        begun.append(ahead.started() is not None)
        ahead.have(ahead.note_of("what an engine needs"))
    assert begun == [True, False, True]


@pytest.mark.parametrize(
    ("place", "environment"),
    [
        ("/nowhere", {}),
        ("/dev/null", {"CUDA_VISIBLE_DEVICES": ""}),
        ("/dev/null", {"TRITON_INTERPRET": "1"}),
    ],
)
def test_nothing_begins_without_a_gpu(
    gpu: None, monkeypatch: pytest.MonkeyPatch, place: str, environment: dict[str, str]
):
    monkeypatch.setattr(ahead, "GPU", Path(place))
    monkeypatch.setattr(ahead, "Compilers", lambda: SimpleNamespace(alive=True))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ahead.begin_early([])
    assert ahead.started() is None


def test_early_ones_that_gave_up_are_not_handed_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    compilers = ahead.Compilers()
    compilers._process.wait()
    monkeypatch.setattr(ahead, "_STARTED", [compilers])
    assert ahead.started() is None


def test_compilers_may_be_stopped():
    compilers = ahead.Compilers()
    compilers.stop()
    assert compilers.wait() is False
