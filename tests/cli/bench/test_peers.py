"""`headrace bench peers`."""

import json
import signal
import sys
from pathlib import Path

import pytest

from headrace.bench.peers import Contestant
from tests.bench.fakes import fake_python
from tests.cli.conftest import Command

SIZES = ("--memory.share=0.02", "--memory.kv-blocks=80", "--schedule.rows=4", "--threads=1", "--device=cpu")


def test_both_engines_in_one_run(
    command: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(
        "headrace.bench.workloads.CPU", {"small": lambda random, vocab: ([[30, 40, 50]] * 3, [4] * 3)}
    )
    log, file = tmp_path / "asked", tmp_path / "result.json"
    words = ("--model", str(tiny), "--dummy-weights", "--rounds", "2", "--output", str(file), *SIZES)
    peer = ("--vllm", str(fake_python(tmp_path)), "--vllm-options", json.dumps({"log": str(log)}))
    code, out, err = command("bench", "peers", "small", *peer, *words)
    assert code == 0, err
    assert "against vllm 9.9" in out
    assert "small round 2 of 2: vllm" in err
    said = json.loads(file.read_text())
    assert said["benchmark"] == "peers"
    assert said["settings"]["engines"]["vllm"]["version"] == "9.9"
    ratio = next(m for m in said["measures"] if m["name"] == "small: against vllm")
    assert ratio["unit"] == "x"
    assert f"{ratio['value']:.2f} x" in out
    assert len(log.read_text().splitlines()) == 3  # a warm-up and two rounds


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no peer is given"),
        (("--vllm", "p", "--rounds", "0"), "--rounds is 0"),
        (("--vllm", "p", "--vllm-options", "{"), "not JSON"),
        (("--vllm", "p", "--vllm-options", "3"), "no JSON object"),
        (("--llama-cpp", "p", "--shape", "qwen3-0.6b"), "GGUF file"),
        (("--llama-cpp", "p", "--temperature", "1"), "temperature 0"),
        (("--vllm", "p", "--temperature", "nan"), "temperature is nan"),
        (("sngle", "--vllm", "p"), "did you mean 'single'"),
        (("--vllm", "p"), "p cannot be run: [Errno 2] No such file"),
        (("--vllm", sys.executable), "has no vllm"),
    ],
)
def test_refused_before_anything_is_started(
    command: Command, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("headrace.bench.peers.Contestant", None)
    code, out, err = command("bench", "peers", *words)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--vllm", "--shape", "qwen3-0.7b"), "did you mean 'qwen3-0.6b'"),
        (("--llama-cpp", "--model", "tiny"), "GGUF"),
    ],
)
def test_models_that_will_not_do(
    command: Command, tiny: Path, tmp_path: Path, words: tuple[str, ...], said: str
):
    flag, *rest = (str(tiny) if word == "tiny" else word for word in words)
    code, _, err = command("bench", "peers", flag, str(fake_python(tmp_path)), *rest)
    assert code == 2
    assert said in err


def test_sigterm_leaves_no_engine_behind(
    command: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    started: list[Contestant] = []

    def ended(contestants: list[Contestant], *_: object) -> None:
        started.extend(contestants)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("headrace.bench.peers.race", ended)
    words = ("--model", str(tiny), "--dummy-weights", "--vllm", str(fake_python(tmp_path)), *SIZES)
    with pytest.raises(SystemExit) as end:
        command("bench", "peers", *words)
    assert end.value.code == 143
    assert [contestant._process.poll() is None for contestant in started] == [False, False]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
