"""Large programs that speak to such servers, each installed from the index into an environment of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.whole.offered import Offered, model, offered

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ENVIRONMENTS = "HEADRACE_CLIENT_ENVIRONMENTS"
"""Names a folder in which the environments are kept for the next time."""

Make = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Gives the Python of an environment with a package in it, by name and requirement."""
    kept = os.environ.get(ENVIRONMENTS)
    folder = Path(kept) if kept else tmp_path_factory.mktemp("environments")

    def make(name: str, requirement: str) -> Path:
        python = folder / name / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "-q", requirement], check=True, timeout=1500)
        return python

    return make


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offered]:
    with offered(model(tmp_path_factory.mktemp("clients") / "tiny")) as running:
        yield running


def run(*words: str | Path, **environ: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=HERE / "tasks",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", **environ},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.timeout(1800)
def test_langchain(environment: Make, server: Offered):
    python = environment("langchain", "langchain-openai>=1.1")
    assert "langchain: ok" in run(python, HERE / "use_langchain.py", server.url)


@pytest.mark.timeout(1800)
def test_litellm(environment: Make, server: Offered):
    python = environment("litellm", "litellm>=1.80")
    assert "litellm: ok" in run(python, HERE / "use_litellm.py", server.url)


@pytest.mark.model
@pytest.mark.timeout(1800)
def test_lm_eval(environment: Make, default_model: Path, tmp_path: Path):
    """Log-likelihoods and generation, with the tokenizer at the server's: nothing but HTTP is needed."""
    python = environment("lm-eval", "lm-eval[api]==0.4.13")
    it = Offered([str(default_model), "--port", "0", "--served-model-name", "small"])
    try:
        arguments = f"model=small,base_url={it.url}/v1/completions,tokenizer_backend=remote,num_concurrent=2"
        words = ["--model", "local-completions", "--model_args", arguments, "--include_path", HERE / "tasks"]
        tasks = ["--tasks", "headrace_choices,headrace_words", "--batch_size", "4", "--output_path", tmp_path]
        run(python, "-m", "lm_eval", *words, *tasks, HF_HOME=str(tmp_path / "hub"))
        assert it.stop() == 0
        assert "Traceback" not in it.said
    finally:
        it.close()
    (file,) = tmp_path.rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    assert results["headrace_choices"]["acc,none"] >= 0.8  # chance is a third
    assert 0 <= results["headrace_words"]["exact_match,none"] <= 1
