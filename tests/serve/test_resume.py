"""The real engine process dies under a tiny model: what clients get is what they would have got."""

import asyncio
from pathlib import Path
from typing import Any

from headrace.base.config import replace_dotted
from headrace.kernels import int8
from headrace.serve.settings import ServeConfig
from headrace.serve.supervisor import HOST
from tests import tiny
from tests.looped import looped
from tests.serve.scripted import ask, finish, running, until

COUNT = 16


FLOATS = {"schedule.overlap": "on"}, "not promised"
EIGHT_BITS = {"model.quantization": "int8"}, "whatever shares a step"
"""What the default model's file asks for by itself, and what the plan says of the same bits."""


def settings(folder: Path, **more: Any) -> ServeConfig:
    model = {"model.path": str(folder), "model.threads": 1, "model.device": "cpu", "memory.share": 0.1}
    schedule = {"schedule.rows": 12, "schedule.tokens": 128, "memory.kv_blocks": 1000}
    return replace_dotted(ServeConfig(), model | schedule | more)


def requests() -> list:
    """Greedy, seeded, with penalties, with log-probabilities of the prompt; some wait for others."""
    params = [
        {},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.8, "seed": 6, "frequency_penalty": 0.7, "repetition_penalty": 1.2},
        {"prompt_logprobs": 1, "logprobs": 2},
    ]
    return [ask([9, 8, 7 + i], 60, **params[i % 4]) for i in range(COUNT)]


@looped
async def test_streams_of_a_real_model_survive_the_death_of_the_engine(tmp_path: Path):
    more, bits = FLOATS if int8.missing() else EIGHT_BITS
    folder = tiny.folder(tmp_path / "model")
    async with running(settings(folder, **more), HOST) as (front, supervisor):
        assert f"same bits      {bits}" in front.facts.plan
        calm = [front.submit([request]) for request in requests()]
        whole = [await finish(answer) for answer in calm]
        answers = [front.submit([request]) for request in requests()]
        results = [asyncio.create_task(finish(answer)) for answer in answers]
        await until(lambda: sum(len(answer.streams[0].token_ids) for answer in answers) >= 15 * COUNT)
        assert supervisor.engine is not None
        supervisor.engine.kill()
        found = [await result for result in results]
        await until(lambda: front.restarts == 1)
        assert found == whole
        for first, again in zip(calm, answers, strict=True):
            assert len(first.streams[0].prompt_logprobs) == len(again.streams[0].prompt_logprobs)
            assert len(first.streams[0].logprobs) == len(again.streams[0].logprobs)
            assert again.streams[0].cached <= 3
