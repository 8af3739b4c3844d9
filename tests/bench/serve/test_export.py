"""Files that other tools read."""

import csv
import json
from pathlib import Path

import pytest

from headrace.bench.serve.arrivals import Load
from headrace.bench.serve.export import document, level_json, write_csv, write_json, write_samples
from tests.bench.serve.made import campaign, level

# What `vllm bench serve --save-result` writes and dashboards read.
VLLM = {
    "num_prompts", "request_rate", "burstiness", "max_concurrency", "duration", "completed", "failed",
    "total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput", "output_throughput",
    "total_token_throughput", "input_lens", "output_lens", "ttfts", "itls", "start_times",
    *(f"{what}_{name}_ms" for name in ("ttft", "tpot", "itl", "e2el") for what in ("mean", "median", "std", "p99")),
}  # fmt: skip


def test_a_level_has_the_keys_of_vllm():
    found = level_json(level(of=campaign(limits={"ttft": 0.11})))
    assert found.keys() >= VLLM
    assert (found["completed"], found["failed"], found["total_output_tokens"]) == (200, 0, 2000)
    assert found["mean_ttft_ms"] == pytest.approx(100, rel=0.02)
    assert found["output_throughput"] == pytest.approx(2000 / found["duration"])
    assert 0 < found["request_goodput"] < found["request_throughput"]
    assert len(found["ttfts"]) == len(found["itls"]) == 200


def test_the_same_samples_are_told_by_every_definition():
    found = level_json(level())["by_definition"]
    assert set(found) == {"headrace", "vllm", "guidellm", "mlperf"}
    assert found["guidellm"]["tpot"]["mean"] > found["headrace"]["tpot"]["mean"]


def test_a_document_is_json_whatever_was_measured(tmp_path: Path):
    empty = campaign()._judged(Load(requests=1), [], 0.0, [], [])
    said = document(campaign(), [level(), empty], {"rate": "inf"})
    write_json(tmp_path / "r.json", said)
    found = json.loads((tmp_path / "r.json").read_text())
    assert [one["name"] for one in found["levels"]] == ["10/s", "all at once"]
    assert found["levels"][1]["request_rate"] == "inf"
    assert found["model_id"] == "stub"


def test_csv_has_a_line_per_level(tmp_path: Path):
    write_csv(tmp_path / "r.csv", [level(), level(Load(streams=4, duration=20.0))])
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["10/s", "4 streams"]
    assert float(rows[0]["server_kv_usage_most"]) == 0.4
    assert float(rows[0]["p99_ttft_ms"]) > 100


def test_samples_have_a_line_each(tmp_path: Path):
    write_samples(tmp_path / "s.jsonl", [level()])
    lines = (tmp_path / "s.jsonl").read_text().splitlines()
    assert len(lines) == 200
    assert json.loads(lines[0])["outcome"] == "ok"
    write_samples(tmp_path / "none.jsonl", [])
    assert (tmp_path / "none.jsonl").read_text() == ""
