"""A GPU says what the CPU says, up to near-ties: alone or in company, with graphs or without, evicted or not."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from headrace.api.llm import LLM
from headrace.api.outputs import RequestOutput
from headrace.engine.constrain import Masks
from headrace.engine.graphs import Graphs, Key
from headrace.engine.request import SamplingParams
from headrace.engine.structured import StructuredOutputsParams
from headrace.kernels.sample import Draws
from headrace.models.gemma import TINY as GEMMA_TINY
from headrace.models.llama import TINY as LLAMA_TINY
from headrace.models.qwen import TINY as QWEN_TINY
from tests import tiny
from tests.engine.forms import fits, schema

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
    "deterministic": {"deterministic": True},
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
    return tiny.folder(tmp_path_factory.mktemp("model") / "wide", QWEN_TINY | WIDE, seed=3)


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


# -- a graph and the same step without one


LLAMA_LIKE = {
    "model_type": "llama", "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 2048,
}  # fmt: skip
GEMMA_LIKE = {"head_dim": 64, "max_position_embeddings": 2048, "sliding_window": 100}
SHAPES = {"wide": QWEN_TINY | WIDE, "llama": LLAMA_TINY | LLAMA_LIKE, "gemma": GEMMA_TINY | GEMMA_LIKE}


@pytest.fixture(scope="module", params=SHAPES)
def shaped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("model") / request.param, SHAPES[request.param], seed=5)


def both_ways(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on every recorded step also runs without its graph first; row counts of the steps compared."""
    replay, compared = graphs.run, []

    def run(draws: Draws | None) -> torch.Tensor:
        graphs.batch.backend.plan(graphs.batch)
        eager = graphs.step(None).clone()
        assert torch.equal(eager, replay(None)), f"{graphs.batch.rows} rows"
        assert eager.isfinite().all()
        compared.append(graphs.batch.rows)
        return replay(draws)

    monkeypatch.setattr(graphs, "run", run)
    return compared


def test_a_graph_of_a_step_with_prompts_gives_the_bits_of_the_step_it_records(
    shaped: Path, monkeypatch: pytest.MonkeyPatch
):
    llm = LLM(str(shaped), **{"memory.share": 0.1, "dtype": "bfloat16", "max_num_batched_tokens": 300})
    graphs = llm.local.engine.runner.graphs
    assert graphs is not None
    graphs.most_tokens = 300  # as it would be of a model with more layers
    replay, compared, ends = graphs.hidden, [], set[bool]()

    def hidden() -> torch.Tensor:
        before = len(graphs.captured)
        graphs.plan()
        eager = graphs.mixed().clone()
        found, batch = replay(), graphs.batch
        real = int(batch.starts_np[-1] if not batch.ends else (batch.context_np > 0).sum())
        assert torch.equal(eager[:real], found[:real]), f"{real} of {len(found)}"
        assert found[:real].isfinite().all()
        ends.add(batch.ends)
        compared.append(len(graphs.captured) == before)
        return found

    monkeypatch.setattr(graphs, "hidden", hidden)
    prompts, params = work()
    llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    assert sum(compared) > 20, "replays of what was captured before"
    assert True in ends


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_graph_gives_the_bits_of_the_step_it_records(
    shaped: Path, deterministic: bool, monkeypatch: pytest.MonkeyPatch
):
    llm = LLM(str(shaped), **{"memory.share": 0.1, "dtype": "bfloat16", "deterministic": deterministic})
    runner = llm.local.engine.runner
    assert runner.graphs is not None
    compared = both_ways(runner.graphs, monkeypatch)
    prompts, params = work()
    for count in (1, 2, 3, 7, 20, 65, 200):
        ids = [{"prompt_token_ids": prompt} for prompt in prompts[:count]]
        llm.generate(ids, params[:count], use_tqdm=False)
    assert len(set(compared)) >= 8


def test_graphs_change_no_bit_of_what_is_told(shaped: Path):
    """The whole way: with graphs rows are padded to other numbers, so this needs `deterministic`."""
    told = []
    for eager in (False, True):
        told.append(
            [
                (output.outputs[0].token_ids, output.outputs[0].logprobs)
                for output in answers(shaped, deterministic=True, enforce_eager=eager)[0]
            ]
        )
    assert told[0] == told[1]


def test_no_schedule_changes_a_bit(shaped: Path):
    """Deterministic: at once, and in pieces of prompts, evicted and recomputed, found in the prefix cache."""
    whole, _ = answers(shaped, deterministic=True, enable_prefix_caching=False)
    names = {"num_gpu_blocks_override": 180, "max_num_batched_tokens": 200, "max_num_seqs": 48}
    pieces, llm = answers(shaped, deterministic=True, **names)
    assert llm.local.engine.scheduler.counts.evictions
    for one, other in zip(whole, pieces, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert one.outputs[0].logprobs == other.outputs[0].logprobs


# -- a thousand requests


def crowd() -> tuple[list[dict[str, list[int]]], list[SamplingParams]]:
    """Prompts that share beginnings, answers of all lengths, some drawn and some greedy."""
    random = Random(7)
    stems = [[random.randrange(3, 250) for _ in range(200)] for _ in range(12)]
    prompts, params = [], []
    for n in range(1000):
        own = [random.randrange(3, 250) for _ in range(random.randint(1, 100))]
        prompts.append({"prompt_token_ids": random.choice(stems)[: random.randrange(200)] + own})
        params.append(
            SamplingParams(
                temperature=(0.0, 0.8)[n % 2], seed=n, top_p=(1.0, 0.9)[n % 3 == 0], ignore_eos=True,
                max_tokens=random.randint(1, 60), logprobs=20,
            )
        )  # fmt: skip
    return prompts, params


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_thousand_requests_get_what_each_gets_alone(folder: Path, deterministic: bool):
    prompts, params = crowd()
    names = {"memory.share": 0.1, "dtype": "bfloat16", "deterministic": deterministic}
    few = {"num_gpu_blocks_override": 150, "max_num_batched_tokens": 512, "max_num_seqs": 64}
    crowded = LLM(str(folder), **names, **few)
    together = crowded.generate(prompts, params, use_tqdm=False)
    counts = crowded.local.engine.scheduler.counts
    assert counts.evictions > 20
    assert counts.cached_tokens > 100
    single = LLM(str(folder), **names, enable_prefix_caching=False)
    for prompt, wanted, found in zip(prompts, params, together, strict=True):
        (alone,) = single.generate([prompt], wanted, use_tqdm=False)
        if deterministic:
            assert alone.outputs[0].token_ids == found.outputs[0].token_ids
            assert alone.outputs[0].logprobs == found.outputs[0].logprobs
        elif wanted.temperature == 0:
            agreed(alone, found)
        else:
            assert len(found.outputs[0].token_ids) == wanted.max_tokens


@pytest.mark.parametrize("way", WAYS)
def test_answers_follow_their_schemas(folder: Path, way: str):
    """Graphs end with logits here, and masks come while the device computes; others in the step want none."""
    dice = Random(5)
    schemas = [schema(dice) for _ in range(60)]
    llm = LLM(str(folder), **{"memory.share": 0.1, "dtype": "bfloat16", **WAYS[way]})
    wanted: list[dict[str, Any] | None] = [*({"json": one} for one in schemas), *[None] * 20]
    params = [
        SamplingParams(seed=n, max_tokens=60, structured_outputs=one)  # pyright: ignore[reportArgumentType]
        for n, one in enumerate(wanted)
    ]
    outputs = llm.generate(["x" * (n + 1) for n in range(len(params))], params, use_tqdm=False)
    ended = [output.outputs[0] for output in outputs[: len(schemas)]]
    assert {answer.finish_reason for answer in ended} <= {"stop", "length"}
    for answer, one in zip(ended, schemas, strict=True):
        assert answer.finish_reason == "length" or fits(json.loads(answer.text), one)
    assert sum(answer.finish_reason == "stop" for answer in ended) > 30


def test_a_recorded_draw_by_masks_is_what_the_sampler_draws(folder: Path, monkeypatch: pytest.MonkeyPatch):
    dice = Random(6)
    llm = LLM(str(folder), **{"memory.share": 0.1, "dtype": "bfloat16"})
    runner = llm.local.engine.runner
    assert runner.graphs is not None
    graphs, draw, same = runner.graphs, runner.graphs.draw, []

    def both(draws: Draws, masks: Masks) -> torch.Tensor:
        slots, positions = graphs.batch.sample_slots_np, graphs.batch.sample_positions_np
        logits = graphs.captured[Key(graphs.batch.rows, None)].out[: len(slots)].clone()
        expected = runner.sampler.sample(logits, slots, positions, masks).tokens
        found = draw(draws, masks)
        same.append(torch.equal(expected, found[: len(slots)]))
        return found

    monkeypatch.setattr(graphs, "draw", both)
    wanted = [StructuredOutputsParams(json=schema(dice)) if n % 3 else None for n in range(40)]
    params = [
        SamplingParams(
            seed=n, max_tokens=40, temperature=(0, 1)[n % 2], ignore_eos=n % 5 == 0, structured_outputs=one
        )
        for n, one in enumerate(wanted)
    ]
    llm.generate(["x" * (n + 1) for n in range(len(params))], params, use_tqdm=False)
    assert len(same) > 20
    assert all(same)
