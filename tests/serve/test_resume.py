"""The real engine process dies under a tiny model: what clients get is what they would have got."""

import asyncio
import os
import signal
from pathlib import Path

from headrace.base.config import replace_dotted
from headrace.serve.settings import ServeConfig
from headrace.serve.supervisor import HOST
from tests import tiny
from tests.serve.scripted import ask, finish, running

COUNT = 64


def settings(folder: Path) -> ServeConfig:
    changes = {"model.path": str(folder), "model.threads": 1, "model.device": "cpu", "memory.share": 0.1}
    changes |= {
        "memory.kv_blocks": 1000,
        "schedule.rows": 64,
        "schedule.tokens": 128,
        "schedule.overlap": "on",
    }
    return replace_dotted(ServeConfig(), changes)


def requests() -> list:
    """Greedy, seeded, with penalties, with log-probabilities of the prompt; some wait for others."""
    params = [
        {},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.8, "seed": 6, "frequency_penalty": 0.7, "repetition_penalty": 1.2},
        {"prompt_logprobs": 1, "logprobs": 2},
    ]
    return [ask([9, 8, 7 + i], 90, **params[i % 4]) for i in range(COUNT)]


def test_sixty_four_streams_of_a_real_model_survive_the_death_of_the_engine(tmp_path: Path):
    folder = tiny.folder(tmp_path / "model")

    async def work() -> None:
        async with running(settings(folder), HOST) as (front, supervisor):
            calm = [front.submit([request]) for request in requests()]
            whole = [await finish(answer) for answer in calm]
            answers = [front.submit([request]) for request in requests()]
            results = [asyncio.create_task(finish(answer)) for answer in answers]
            while sum(len(answer.streams[0].token_ids) for answer in answers) < 15 * COUNT:
                await asyncio.sleep(0.002)
            assert supervisor.engine is not None
            os.kill(supervisor.engine.pid, signal.SIGKILL)
            found = [await result for result in results]
            assert front.restarts == 1
            assert found == whole
            for first, again in zip(calm, answers, strict=True):
                assert len(first.streams[0].prompt_logprobs) == len(again.streams[0].prompt_logprobs)
                assert len(first.streams[0].logprobs) == len(again.streams[0].logprobs)
                assert again.streams[0].cached <= 3

    asyncio.run(asyncio.wait_for(work(), 200))


def test_a_reader_that_leaves_frees_its_blocks(tmp_path: Path):
    folder = tiny.folder(tmp_path / "model", max_position_embeddings=4096)

    async def work() -> None:
        async with running(settings(folder), HOST) as (front, _):
            stays, leaves = front.submit([ask([9, 8, 7], 3000)]), front.submit([ask([9] * 2000, 2000)])
            while not leaves.streams[0].token_ids:
                await asyncio.sleep(0.002)
            while front.stats.kv_used < 0.1:  # told every 50 ms
                await asyncio.sleep(0.002)
            leaves.cancel()
            while front.stats.kv_used > 0.1:
                await asyncio.sleep(0.002)
            assert front.stats.running == 1
            assert stays.open == 1
            stays.cancel()

    asyncio.run(asyncio.wait_for(work(), 100))
