"""`headrace bench throughput`, `latency` and `host`: what they measure is written down, what cannot be is refused."""

import json
from pathlib import Path

import pytest

from headrace.bench.result import Result
from tests.cli.conftest import Command


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["throughput", "--requests=2", "--tokens-in=5", "--tokens-out=4"], ["2x5+4: time", "2x5+4: output"]),
        (["throughput", "single"], ["single: time", "single: output"]),
        (["latency", "--tokens-in=5", "--tokens-out=4"], ["TTFT p50", "ITL mean"]),
        (["host", "--step-tokens=512"], ["4 x 8+3: plan", "4 x 8+3: fill", "4 x 8+3: commit"]),
    ],
)
def test_a_result_is_shown_and_written(
    words: list[str], names: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("headrace.cli.bench.host.CASES", ((4, 8, 3),))
    monkeypatch.setattr(
        "headrace.bench.workloads.CPU", {"single": lambda random, vocab: ([[30, 40, 50]], [4])}
    )
    engine = words[0] != "host"
    more = ["--repeats=1"] if engine else []
    code, out, err = command("bench", *words, *more, "--output", str(tmp_path / "r.json"), small=engine)
    assert code == 0, err
    said = json.loads((tmp_path / "r.json").read_text())
    measured = {measure["name"]: measure["value"] for measure in said["measures"]}
    for name in names:
        assert measured[name] > 0
        assert name in out
    assert said["benchmark"] == words[0]
    assert said["settings"].get("model", "tiny").endswith("tiny")


def test_a_result_of_another_benchmark_is_no_comparison(command: Command, tmp_path: Path):
    Result("latency", {}, {}, None, {}).write(tmp_path / "before.json")
    names = f"--compare={tmp_path}/before.json", f"--output={tmp_path}/now.json"
    words = "throughput", "--requests=1", "--tokens-in=5", "--tokens-out=4", "--repeats=1"
    code, out, err = command("bench", *words, *names, small=True)
    assert code == 2
    assert "of `bench latency`; one of `bench throughput` is expected" in err
    assert "1x5+4: time" in out
    assert (tmp_path / "now.json").exists(), "what was measured is kept"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["throughput", "--repeats=0"], "--repeats is 0"),
        (["throughput", "--requests=0"], "--requests is 0"),
        (["throughput", "--requests=1", "--tokens-in=0"], "--tokens-in is 0"),
        (["throughput", "single", "--requests=1"], "both workloads and --requests"),
        (["throughput", "--shape=qwen3-0.7b"], "did you mean 'qwen3-0.6b'"),
        (["latency", "--tokens-out=0"], "--tokens-out is 0"),
        (["latency", "--output=no/such/r.json"], "no/such is no folder"),
        (["throughput", "--compare=no-such.json"], "no-such.json cannot be read"),
        (["host", "--step-tokens=0"], "--step-tokens is 0"),
        (["startup", "--model=no-such-model"], "unknown model 'no-such-model'"),
    ],
)
def test_refused(words: list[str], said: str, command: Command):
    code, out, err = command("bench", *words)
    assert (code, out) == (2, "")
    assert said in err
