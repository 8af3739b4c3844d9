"""Engines take turns on the same token ids; what goes wrong in one is said with what it printed."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from headrace.base.config import values
from headrace.base.errors import Broken, Refused
from headrace.bench import peers
from headrace.bench.peers import OURS, Contestant, Peer, Race, check, race
from headrace.bench.workloads import Workload, workload
from headrace.models.llama import TINY
from tests.bench.fakes import fake_python
from tests.looped import state, wait_for
from tests.tiny import config

WORK = Workload("small", [[1, 2, 3], [4, 5]], [4, 2])


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python whose environment has both fakes."""
    return fake_python(tmp_path)


@pytest.fixture
def vllm(python: Path, tmp_path: Path) -> Callable[..., Peer]:
    def made(**options: Any) -> Peer:
        settings = {"model": "m", "temperature": 0.0, "options": options | {"log": str(tmp_path / "asked")}}
        return Peer("vllm", python, settings)

    return made


@pytest.fixture
def llama(python: Path) -> Peer:
    return Peer("llama-cpp", python, {"model": "m.gguf", "temperature": 0.0, "threads": 1, "vocab": 50})


def test_llama_cpp_gets_every_position_once(llama: Peer):
    long = Workload("long", [[i % 50 for i in range(n)] for n in (3000, 1, 7)], [1, 5, 3])
    with Contestant(llama) as contestant:
        assert contestant.facts["version"] == "8.8"
        assert contestant.run(long) > 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_who_waits_is_stopped_and_nobody_is_left(vllm: Callable[..., Peer]):
    with Contestant(vllm()) as contestant:
        process = contestant._process.pid
        wait_for(lambda: state(process) == "T")
        contestant.run(WORK)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("start", "failed with ValueError: no such model"),
        ("exit", "ended"),
        ("run", "failed with RuntimeError: out of memory"),
        ("short", "made 4 tokens of 6"),
    ],
)
def test_what_goes_wrong_is_said(vllm: Callable[..., Peer], broken: str, said: str):
    with pytest.raises(Broken, match=said) as fault, Contestant(vllm(broken=broken)) as contestant:
        contestant.run(WORK)
    assert broken == "short" or "vllm says hello" in fault.value.message


def test_patience_ends(vllm: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch):
    with Contestant(vllm(broken="hang")) as contestant:
        monkeypatch.setattr(peers, "PATIENCE", 0.3)
        with pytest.raises(Broken, match="did not answer"):
            contestant.run(WORK)


def test_a_python_that_is_none(tmp_path: Path):
    with pytest.raises(Refused, match=r"cannot be run: .*No such file"):
        check("vllm", tmp_path / "none")


def test_an_environment_with_and_without_the_engine(python: Path):
    for engine in ("vllm", "llama-cpp"):
        check(engine, python)
        with pytest.raises(Refused, match=f"has no {engine}"):
            check(engine, Path(sys.executable))


# -- the race --------------------------------------------------------------------------------------------------


@pytest.fixture
def three(vllm: Callable[..., Peer], llama: Peer, tmp_path: Path) -> Iterator[list[Contestant]]:
    """This engine on a tiny model, and both fakes."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/config.json").write_text(json.dumps(TINY))
    knobs = values(config(tmp_path / "tiny", load_format="dummy"))
    ours = Peer(OURS, Path(sys.executable), {"knobs": knobs, "temperature": 0.0})
    with ExitStack() as stack:
        yield [stack.enter_context(Contestant(peer)) for peer in (ours, vllm(), llama)]


def test_all_run_the_same_ids_in_turns(three: list[Contestant], tmp_path: Path):
    order: list[str] = []
    (made,) = race(three, [WORK], 3, 50, lambda said: order.append(said.split(": ")[1].split()[0]))
    assert {engine: len(s) for engine, s in made.seconds.items()} == {OURS: 3, "vllm": 3, "llama-cpp": 3}
    assert order == [OURS, "vllm", "llama-cpp", "vllm", "llama-cpp", OURS, "llama-cpp", OURS, "vllm"]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [str(WORK.again(n, 50).prompts) for n in (1000, 0, 1, 2)]
    assert three[0].facts["vocab"] == 199
    assert three[1].facts["start_s"] >= 0
    names = [measure.name for measure in made.measures()]
    assert names[-2:] == ["small: against vllm", "small: against llama-cpp"]


def test_ratios_are_of_rounds_and_medians_of_ratios():
    made = Race(WORK, {OURS: [1.0, 2.0, 1.0], "vllm": [3.0, 5.0, 2.0]})
    assert made.ratios("vllm") == [3.0, 2.5, 2.0]
    found = {m.name: m for m in made.measures()}
    assert found["small: against vllm"].value == 2.5
    assert found["small: against vllm"].spread == pytest.approx(0.2)
    assert found["small: headrace: time"].value == 1.0
    assert found["small: vllm: output"].value == 2.0


def test_a_warm_up_is_short():
    work = workload("mixed64", 1000, gpu=False)
    short = work.warm_up(1000)
    assert max(short.outputs) == 8
    assert len(short.prompts) == len(short.outputs) == 64
    assert short.prompts[0] != work.prompts[0]
