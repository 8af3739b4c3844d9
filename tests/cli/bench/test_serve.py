"""`headrace bench serve` as people call it, against a stub."""

import csv
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from headrace.base.errors import Broken
from headrace.bench.serve.arrivals import Load
from headrace.bench.serve.campaign import Campaign, Level
from headrace.bench.serve.selftest import stub
from headrace.cli.main import run

QUICK = ["--no-self-test", "--tokens-out", "6", "--warmup", "0"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with stub("--interval", "0.002") as address:
        yield address


def bench(url: str, *words: str) -> int:
    return run(["bench", "serve", "--url", url, *QUICK, *words])


def test_a_level_is_shown_and_written(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = {name: tmp_path / f"r.{name}" for name in ("json", "csv", "html", "jsonl")}
    code = bench(
        url, "--rate", "40", "--requests", "30", "--goodput", "ttft=5,tpot=1", "--output", str(files["json"]),
        "--csv", str(files["csv"]), "--html", str(files["html"]), "--samples", str(files["jsonl"]),
    )  # fmt: skip
    assert code == 0
    shown = capsys.readouterr().out
    for word in ("40/s", "30 ok", "TTFT", "TPOT", "ITL", "E2E", "goodput", "server: KV in use"):
        assert word in shown, word
    said = json.loads(files["json"].read_text())
    assert said["levels"][0]["completed"] == 30
    assert said["settings"]["api_key"] is None
    assert len(list(csv.DictReader(files["csv"].read_text().splitlines()))) == 1
    assert files["html"].read_text().startswith("<!doctype html>")
    assert len(files["jsonl"].read_text().splitlines()) == 30


def test_several_levels_and_a_comparison(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ("--concurrency", "1,2", "--requests", "8", "--duration", "120")
    assert bench(url, *words, "--output", str(tmp_path / "a.json")) == 0
    words = ("--concurrency", "1", *words[2:], "--compare", str(tmp_path / "a.json"), "--fail-if")
    assert bench(url, *words, "tpot_p50 +10000000%, error_rate +0.5") == 0
    capsys.readouterr()
    assert bench(url, *words, "output_per_second +0.0001%,output_per_second -0.0001%") == 1
    assert "fails: 1 streams, output_per_second went from" in capsys.readouterr().out.replace("\n", " ")


def test_what_cannot_be_compared_is_refused_before_or_kept_after(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    old, new = tmp_path / "a.json", tmp_path / "b.json"
    assert bench(url, "--rate", "50", "--requests", "4", "--output", str(old)) == 0
    words = ("--compare", str(old), "--output", str(new))
    assert bench(url, *words, "--definitions", "vllm") == 2
    assert "give --definitions headrace" in capsys.readouterr().err
    assert not new.exists()
    assert bench(url, *words, "--rate", "60", "--requests", "4") == 2
    assert "no level of load is in both" in capsys.readouterr().err.replace("\n", " ")
    assert json.loads(new.read_text())["levels"][0]["completed"] == 4


def test_a_search_says_what_holds(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("headrace.bench.serve.search.LONGEST", 1)
    monkeypatch.setattr("headrace.bench.serve.campaign.LATE", 60.0)  # this machine may be busy
    output = tmp_path / "s.json"
    limit = "ttft_p50<30"
    assert bench(url, "--find-slo", limit, "--rate", "200", "--duration", "0.3", "--output", str(output)) == 0
    found = json.loads(output.read_text())["search"]
    assert (found["limits"], found["holds"], found["fails"]) == (limit, 200, None)
    assert "200/s holds" in capsys.readouterr().out


def test_a_trace_a_file_and_conversations(url: str, tmp_path: Path):
    trace = tmp_path / "t.jsonl"
    entries = [{"timestamp": 10 * n, "input_length": 5, "output_length": 3} for n in range(5)]
    trace.write_text("\n".join(map(json.dumps, entries)))
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "hi", "max_tokens": 3}\n')
    output = tmp_path / "o.json"
    for words, sent in (
        (("--replay", str(trace)), 5),
        (("--data", str(prompts), "--rate", "50", "--requests", "4"), 4),
        (
            ("--turns", "3", "--think", "0.01", "--concurrency", "1", "--requests", "2", "--duration", "120"),
            6,
        ),
        (("--endpoint", "completions", "--no-stream", "--rate", "inf", "--requests", "3"), 3),
    ):
        assert bench(url, *words, "--output", str(output)) == 0
        assert json.loads(output.read_text())["levels"][0]["completed"] == sent


def test_a_server_where_everything_fails_gives_numbers_and_an_exit_code(capsys: pytest.CaptureFixture[str]):
    with stub("--trouble", "error") as address:
        assert bench(address, "--rate", "50", "--requests", "5") == 1
    shown = capsys.readouterr().out
    assert "5 error" in shown
    assert "HTTP 500: it broke" in shown.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "stubb"], "did you mean 'stub'"),
        (["--rate", "x"], "--rate is 'x'"),
        (["--rate", "0"], "--rate is '0'"),
        (["--concurrency", "1.5"], "whole numbers"),
        (["--tokens-in", "many"], "--tokens-in"),
        (["--goodput", "itl=1"], "--goodput"),
        (["--find-slo", "x<1"], "no limit"),
        (["--fail-if", "tpot_p99 +5%"], "without --compare"),
        (["--compare", "none.json"], "cannot be read"),
        (["--data", "none.jsonl"], "cannot be read"),
        (["--compare", "/dev/zero"], "it is a pipe or a device"),
        (["--data", "/dev/zero"], "it is a pipe or a device"),
        (["--extra", "["], "--extra"),
        (["--rate", "inf", "--duration", "1"], "needs --requests"),
        (["--concurrency", "inf"], "whole numbers"),
        (["--rate", "1", "--burstiness", "0"], "--burstiness is 0.0; expected at least 0.001"),
        (["--duration", "nan"], "--duration is nan"),
        (["--rate", "1", "--burst", "3"], "--burst is given, and --pattern poisson, not burst"),
        (["--data", "x.jsonl", "--tokens-in", "9"], "--tokens-in and --data are both given"),
        (["--find-slo", "attained>0.9"], "what a good request is"),
        (["--html", "no/such/folder.html"], "cannot be written: no/such is no folder"),
        (["--html", "r.json", "--output", "r.json"], "one file is given for two of output, html"),
        (["--concurrency", "1e30"], "whole numbers up to 100000"),
        (["--requests", f"{10**22}"], "expected at most"),
        (["--seed", f"{10**22}"], "expected at most"),
        (["--prefix-tokens", f"{10**12}"], "expected at most 1048576"),
        (["--rate", "1e9"], "at most 10,000,000 are played"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--find-slo", ""], "no limit"),
        (["--goodput", ""], "--goodput is ''"),
        (["--turns", "2", "--endpoint", "completions"], "conversations are chat"),
        (["--api-key", "k\r"], "characters that no header may have"),
        (["--api-key", "\u043a"], "characters that no header may have"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_sent(
    url: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert bench(url, *words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "code"),
    [(KeyboardInterrupt(), 130), (Broken("a client process died"), 1), (SystemExit(143), 143)],
)
def test_what_was_measured_is_kept_when_a_later_level_is_not(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, code: int
):
    level = Campaign.level

    def second_fails(self: Campaign, load: Load, number: int = 0) -> Level:
        if number:
            raise fault
        return level(self, load, number)

    monkeypatch.setattr(Campaign, "level", second_fails)
    output = tmp_path / "o.json"
    words = ("--concurrency", "1,2", "--requests", "4", "--duration", "60", "--output", str(output))
    with pytest.raises(SystemExit) if code == 143 else nullcontext():
        assert bench(url, *words) == code
    assert [one["name"] for one in json.loads(output.read_text())["levels"]] == ["1 streams"]


def test_a_server_that_dies_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "o.json"
    with stub("--interval", "0.002", "--trouble", "dead", "--every", "6") as address:
        words = ("--concurrency", "1,2,4", "--requests", "12", "--duration", "60")
        code = bench(address, *words, "--output", str(output))
    assert code == 0
    (only,) = json.loads(output.read_text())["levels"]
    assert only["completed"] == 5
    assert only["failed"] >= 3
    assert "the server was gone" in capsys.readouterr().out.replace("\n", " ")


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]):
    assert bench("http://127.0.0.1:9", "--requests", "1") == 2
    assert "cannot be reached" in capsys.readouterr().err
