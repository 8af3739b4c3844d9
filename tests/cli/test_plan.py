"""`headrace plan`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.bench.result import Measure, Result
from headrace.models.llama import TINY
from tests.cli.conftest import Command

LLAMA = "llama-3.1-8b"


def test_tables(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "140")
    code, out, err = command("plan", LLAMA, "--gpu", "h200")
    assert (code, err) == (0, "")
    assert "8.03 billion" in out
    for said in ("900,016 tokens", "fits: 64 of 64", "128.0 KiB per token", "limited by", "0.74 x"):
        assert said in out


@pytest.fixture
def planned(command: Command) -> Callable[..., dict[str, Any]]:
    """Plans a model and gives the JSON."""

    def run(model: str, *words: str) -> dict[str, Any]:
        code, out, err = command("plan", model, *words, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


Plan = Callable[..., dict[str, Any]]


def test_json(planned: Plan):
    said = planned(LLAMA, "--gpu", "h200", "--workload", "in=100,out=50,concurrency=4")
    assert (said["parameters"], said["fits"]) == (8_030_261_248, True)
    assert said["memory"]["kv_tokens"] == 900_016
    assert said["workload"] == {"in": 100, "out": 50, "concurrency": 4, "prefix": 0}
    assert said["forecast"]["rows"] == 4
    assert {"fp8", "2"} <= {word for a in said["advice"] for word in a["flags"].split()}
    assert "choices" not in said
    assert "calibration" not in said


def test_a_folder_with_a_config_is_enough(planned: Plan, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"max_position_embeddings": 4096}))
    assert planned(str(tmp_path), "--gpu", "l4")["model"] == tmp_path.name


def test_what_does_not_fit_is_an_answer(planned: Plan, command: Command):
    said = planned("llama-3.1-70b", "--gpu", "h100")
    assert (said["fits"], said["forecast"]) == (False, None)
    assert "does not fit" in said["verdict"]
    assert said["advice"]
    assert command("plan", "llama-3.1-70b", "--gpu", "h100")[0] == 0


def test_a_quantized_checkpoint_is_planned_as_it_is(planned: Plan):
    said = planned("deepseek-v3", "--gpu", "h200", "--gpus", "8")
    assert (said["scheme"], said["fits"]) == ("fp8", True)


def test_flags_change_the_plan(planned: Plan):
    def forecast(*words: str) -> float:
        return planned(LLAMA, *words)["forecast"]["output_tokens_per_s"]

    plain = forecast()
    assert forecast("--scheme", "fp8") > plain
    assert forecast("--kv", "fp8") > plain
    assert forecast("--gpus", "2") > plain
    assert forecast("--draft", "3,0.9") > plain
    assert forecast("--engine", "vllm") != plain
    assert forecast("--gpu", "l40s") < plain


def test_prices(planned: Plan, tmp_path: Path):
    (tmp_path / "gpus.json").write_text('{"h200": {"price": 7.2}}')
    file = ("--gpus-file", str(tmp_path / "gpus.json"))
    asked = (("--price", "3.6"), file, (*file, "--price", "1.8"))
    costs = [planned(LLAMA, *words)["forecast"]["cost_per_million_output"] for words in asked]
    assert costs[1] == pytest.approx(2 * costs[0])
    assert costs[2] == pytest.approx(costs[0] / 2)


def test_the_cheapest_that_holds(planned: Plan, command: Command, tmp_path: Path):
    page = tmp_path / "plan.html"
    words = ("--slo", "ttft<0.5,tpot<0.03", "--qps", "20", "--html", str(page))
    said = planned(LLAMA, *words)
    best = said["choices"][0]
    assert (said["gpu"], said["scheme"]) == (best["gpu"], best["scheme"])
    assert best["forecast"]["tpot"] < 0.03
    prices = [choice["price_per_hour"] for choice in said["choices"]]
    assert prices == sorted(prices)
    assert "cheapest" in page.read_text()
    only = planned(LLAMA, *words, "--gpu", "l4,l40s")
    assert {c["gpu"] for c in only["choices"]} <= {"l4", "l40s"}
    code, out, _ = command("plan", LLAMA, "--slo", "tpot<0.03", "--gpu", "h100", "--gpus", "2")
    assert code == 0
    assert "the cheapest that holds" in out


def test_calibration_says_its_error(planned: Plan, command: Command, tmp_path: Path):
    file = tmp_path / "result.json"
    settings = {"model": LLAMA, "dtype": "bfloat16", "kv_tokens": 900_000, "rows": 512, "tokens": 8192}
    measures = [Measure("single: time", 2.2, "s", "lower"), Measure("batch32: time", 3.0, "s", "lower")]
    Result("throughput", {"gpu": "NVIDIA H200"}, {}, None, settings, measures).write(file)
    said = planned(LLAMA, "--calibrate", str(file))
    rows = said["calibration"]["samples"]
    assert [row["name"] for row in rows] == [f"{LLAMA} bf16 single", f"{LLAMA} bf16 batch32"]
    assert all(abs(row["error"]) < abs(row["error_before"]) for row in rows)
    slower = said["forecast"]["tpot"]
    assert slower > planned(LLAMA)["forecast"]["tpot"]
    assert "before fitting" in command("plan", LLAMA, "--calibrate", str(file))[1]
    code, _, err = command("plan", LLAMA, "--gpu", "cpu", "--calibrate", str(file))
    assert code == 2
    assert "another kind of device" in err
    code, _, err = command("plan", LLAMA, "--gpus", "0", "--calibrate", str(file))
    assert (code, "--gpus is 0" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lama-3.1-8b",), "did you mean 'llama-3.1-8b'"),
        ((LLAMA, "--gpu", "h20o"), "did you mean 'h200'"),
        ((LLAMA, "--gpu", "h100,h200"), "several devices"),
        ((LLAMA, "--gpu", ","), "no device"),
        ((LLAMA, "--scheme", "fp9"), "did you mean 'fp8'"),
        ((LLAMA, "--kv", "fp9"), "did you mean 'fp8'"),
        ((LLAMA, "--engine", "vlm"), "did you mean 'vllm'"),
        ((LLAMA, "--gpus", "3"), "cannot share"),
        ((LLAMA, "--gpus", "0"), "--gpus is 0"),
        ((LLAMA, "--workload", "in=-1"), "whole number"),
        ((LLAMA, "--workload", "inn=1"), "did you mean 'in'"),
        ((LLAMA, "--workload", "in=131072,out=1"), "more than the 131072 positions"),
        ((LLAMA, "--max-len", "1000"), "longer than --max-len"),
        ((LLAMA, "--max-len", "0"), "--max-len is 0"),
        ((LLAMA, "--price", "-1"), "--price is -1"),
        ((LLAMA, "--price", "nan"), "--price is nan"),
        ((LLAMA, "--qps", "0"), "--qps is 0"),
        ((LLAMA, "--slo", "ttft<0"), "above 0"),
        ((LLAMA, "--slo", "tpot<0.0000001"), "no configuration holds"),
        ((LLAMA, "--draft", "3"), "--draft is '3'"),
        ((LLAMA, "--calibrate", "none.json"), "cannot be read"),
        ((LLAMA, "--gpus-file", "none.json"), "cannot be read"),
        ((LLAMA, "--calibrate", "/dev/zero"), "it is a pipe or a device"),
        ((LLAMA, "--gpus-file", "/dev/zero"), "it is a pipe or a device"),
        ((LLAMA, "--html", "none/none/x.html"), "cannot be written"),
    ],
)
def test_what_cannot_be_is_refused(command: Command, words: tuple[str, ...], said: str):
    code, out, err = command("plan", *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err


def test_torch_is_not_loaded():
    probe = (
        "import sys\nfrom headrace.cli.main import run\n"
        f"code = run(['plan', '{LLAMA}', '--slo', 'tpot<0.05', '--json'])\n"
        "assert code == 0\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
