"""`headrace bench serve` and AIPerf on the same server say the same."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from headrace.bench.serve.data import WORDS
from headrace.bench.serve.selftest import stub
from headrace.cli.main import run
from tests.clients.test_clients import Make, environment

__all__ = ["environment"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RATE, REQUESTS, TOKENS_IN, TOKENS_OUT = 5, 60, 32, 64
CLOSE = 0.05


@pytest.fixture(scope="module")
def aiperf(environment: Make) -> Path:
    return environment("aiperf", "aiperf==0.13.0").with_name("aiperf")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What AIPerf counts with."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=letters, special_tokens=["<eos>"])
    made.train_from_iterator([f" {word}" for word in WORDS for _ in range(3)] + [" word"] * 9, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", bos_token="<eos>")
    whole.save_pretrained(folder)
    return folder


def theirs(aiperf: Path, tokenizer: Path, url: str, folder: Path) -> dict[str, Any]:
    words = [
        "profile", "-m", "stub", "--url", url, "--endpoint-type", "chat", "--streaming", "--tokenizer", tokenizer,
        "--isl", TOKENS_IN, "--osl", TOKENS_OUT, "--extra-inputs", "ignore_eos:true", "--request-rate", RATE,
        "--request-rate-mode", "constant", "--request-count", REQUESTS, "--ui", "simple",
        "--output-artifact-dir", folder,
    ]  # fmt: skip
    done = subprocess.run([str(aiperf), *map(str, words)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
    return json.loads((folder / "profile_export_aiperf.json").read_text())


def test_both_measure_the_same(aiperf: Path, tokenizer: Path, tmp_path: Path):
    output = tmp_path / "ours.json"
    # the first token waits for the next tick of 10 ms, wherever in between the request comes
    with stub("--interval", "0.01", "--wait", "0.4") as url:
        other = theirs(aiperf, tokenizer, url, tmp_path / "theirs")
        words = ["--rate", str(RATE), "--pattern", "constant", "--requests", str(REQUESTS)]
        words += ["--tokens-in", str(TOKENS_IN), "--tokens-out", str(TOKENS_OUT), "--no-self-test"]
        assert run(["bench", "serve", "--url", url, *words, "--output", str(output)]) == 0
    ours = json.loads(output.read_text())["levels"][0]
    assert ours["median_ttft_ms"] == pytest.approx(other["time_to_first_token"]["p50"], rel=CLOSE)
    assert ours["median_tpot_ms"] == pytest.approx(other["inter_token_latency"]["p50"], rel=CLOSE)
    assert ours["median_e2el_ms"] == pytest.approx(other["request_latency"]["p50"], rel=CLOSE)
    assert ours["output_throughput"] == pytest.approx(other["output_token_throughput"]["avg"], rel=CLOSE)
