"""A GPU says what the CPU says, up to near-ties: alone or in company, with graphs or without, evicted or not."""

from pathlib import Path
from random import Random

import pytest

from headrace.api.llm import LLM
from headrace.api.outputs import RequestOutput
from headrace.engine.request import SamplingParams
from headrace.models.qwen import TINY
from tests import tiny

pytestmark = pytest.mark.gpu

TIE = 0.1
"""Log-probabilities this close are equal as far as bfloat16 and another order of addition can tell."""
WIDE = {
    "model_type": "qwen3", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048,
}  # fmt: skip
WAYS = {
    "float32": {"dtype": "float32"},
    "graphs": {},
    "eager": {"enforce_eager": True},
    "evicted": {"num_gpu_blocks_override": 200, "max_num_batched_tokens": 256, "max_num_seqs": 64},
    "one step at a time": {"async_scheduling": False},
}


def work() -> tuple[list[list[int]], list[SamplingParams]]:
    random = Random(1)
    prompts = [[random.randrange(3, 250) for _ in range(random.randint(1, 300))] for _ in range(200)]
    lengths = [random.randint(1, 60) for _ in prompts]
    return prompts, [
        SamplingParams(temperature=0, ignore_eos=True, max_tokens=n, logprobs=20) for n in lengths
    ]


def answers(folder: Path, **names: object) -> tuple[list[RequestOutput], LLM]:
    prompts, params = work()
    llm = LLM(str(folder), **{"memory.share": 0.1, "dtype": "bfloat16", **names})
    return llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False), llm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("model") / "wide", TINY | WIDE, seed=3)


@pytest.fixture(scope="module")
def by_cpu(folder: Path) -> list[RequestOutput]:
    return answers(folder, device="cpu")[0]


@pytest.mark.parametrize("way", WAYS)
def test_greedy_answers_agree(folder: Path, by_cpu: list[RequestOutput], way: str):
    found, llm = answers(folder, device="cuda", **WAYS[way])
    if way == "evicted":
        assert llm.local.engine.scheduler.counts.evictions
    compared = sum(agreed(expected, output) for expected, output in zip(by_cpu, found, strict=True))
    assert compared > 1000


def agreed(expected: RequestOutput, found: RequestOutput) -> int:
    """Tokens that are equal; they may part only where the CPU's own log-probabilities cannot tell two apart."""
    said, answer = expected.outputs[0], found.outputs[0]
    assert said.logprobs is not None
    assert answer.logprobs is not None
    assert len(said.token_ids) == len(answer.token_ids)
    for n, (a, b) in enumerate(zip(said.token_ids, answer.token_ids, strict=True)):
        table = said.logprobs[n]
        if a != b:
            assert b in table
            assert table[a].logprob - table[b].logprob < TIE
            return n
        assert abs(table[a].logprob - answer.logprobs[n][a].logprob) < TIE
    return len(said.token_ids)
