"""`headrace bench throughput`, `latency` and `host`: what they measure is written down, what cannot be is refused."""

import json
from pathlib import Path

import pytest

from headrace.bench.result import Measure, Result
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


def test_what_cannot_start_is_refused_before_an_interpreter_is(command: Command):
    code, out, err = command("bench", "startup", "--max-len=9999", small=True)
    assert (code, out) == (2, "")
    assert "model.max_len 9999" in err


def test_a_result_of_another_benchmark_is_no_comparison(command: Command, tmp_path: Path):
    Result("latency", {}, {}, None, {}).write(tmp_path / "before.json")
    names = f"--compare={tmp_path}/before.json", f"--output={tmp_path}/now.json"
    words = "throughput", "--requests=1", "--tokens-in=5", "--tokens-out=4", "--repeats=1"
    code, out, err = command("bench", *words, *names, small=True)
    assert (code, out) == (2, "")
    assert "of `bench latency`; one of `bench throughput` is expected" in err
    assert not (tmp_path / "now.json").exists()


def test_a_result_takes_the_place_of_the_one_that_it_is_compared_with(command: Command, tmp_path: Path):
    file = tmp_path / "r.json"
    old = Measure("TTFT p50", 1e9, "ms", "lower")
    Result("latency", {"cpu": "another"}, {}, None, {"tokens_in": 9, "repeats": 1}, [old]).write(file)
    words = "latency", "--tokens-in=5", "--tokens-out=2", "--repeats=1"
    code, out, _ = command("bench", *words, f"--output={file}", f"--compare={file}", small=True)
    assert code == 0
    assert "1,000,000,000" in out
    said = " ".join(out.split("measured otherwise: ")[1].split())
    assert said.startswith("cpu another, now")
    assert "tokens_in 9, now 5" in said
    assert "repeats" not in said
    assert Result.read(file, "latency").measures[0].value < 1e9


def test_a_reader_who_has_left_does_not_take_the_result_along(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def left(*_: object) -> None:
        raise SystemExit(1)  # what rich makes of a closed pipe

    monkeypatch.setattr("headrace.cli.bench._report.Console.print", left)
    words = "latency", "--tokens-in=5", "--tokens-out=2", "--repeats=1"
    with pytest.raises(SystemExit):
        command("bench", *words, f"--output={tmp_path}/r.json", small=True)
    assert (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["throughput", "--repeats=0"], "--repeats is 0"),
        (["throughput", "--requests=0"], "--requests is 0"),
        (["throughput", "--requests=1", "--tokens-in=0"], "--tokens-in is 0"),
        (["throughput", "single", "--requests=1"], "both workloads and --requests"),
        (["throughput", "--shape=qwen3-0.7b"], "did you mean 'qwen3-0.6b'"),
        (["throughput", "--tokens-in=7"], "are for --requests"),
        (["throughput", "sngle", "--model=no-such-model"], "did you mean 'single'"),
        (["throughput", "--temperature=-1", "--model=no-such-model"], "temperature is -1.0"),
        (["latency", "--temperature=nan", "--model=no-such-model"], "temperature is nan"),
        (["latency", "--tokens-out=0"], "--tokens-out is 0"),
        (["latency", "--output=no/such/r.json"], "no/such is no folder"),
        (["throughput", "--compare=no-such.json"], "no-such.json cannot be read"),
        (["host", "--step-tokens=0"], "--step-tokens is 0"),
        (["host", "--step-tokens=100000000000"], "expected at most 1048576"),
        (["host", "--grammars=no-such-model"], "unknown model 'no-such-model'"),
        (["startup", "--model=no-such-model"], "unknown model 'no-such-model'"),
    ],
)
def test_refused(words: list[str], said: str, command: Command):
    code, out, err = command("bench", *words)
    assert (code, out) == (2, "")
    assert said in err
