"""AsyncLLM: concurrent streams, cancels, and an end for everybody whatever happens."""

import asyncio
import threading
from contextlib import aclosing, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from headrace.api.async_llm import AsyncLLM
from headrace.api.llm import LLM
from headrace.api.outputs import RequestOutput
from headrace.base.errors import Broken, Refused, TooLong
from headrace.engine.request import SamplingParams
from tests import tiny
from tests.looped import looped

GREEDY = SamplingParams(temperature=0, max_tokens=8)
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)


async def collect(
    engine: AsyncLLM, prompt: Any, params: SamplingParams = GREEDY, **more
) -> list[RequestOutput]:
    return [output async for output in engine.generate(prompt, params, **more)]


async def at_rest(engine: AsyncLLM) -> None:
    """Cancels are on their way to the engine's thread; wait until it has nothing to do, and has given all back."""
    pool = engine._loop._engine.scheduler.pool
    while engine._loop._engine.busy or engine._loop._boxes or engine._open or pool.free != pool.count:
        await asyncio.sleep(0.001)


@looped
async def test_outputs_grow_and_end_once(engine: AsyncLLM, llm: LLM):
    outputs = await collect(engine, "ab", request_id="mine")
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    texts = [output.outputs[0].text for output in outputs]
    assert all(b.startswith(a) for a, b in pairwise(texts))
    (expected,) = llm.generate("ab", GREEDY, use_tqdm=False)
    last = outputs[-1]
    assert last.outputs == expected.outputs
    assert (last.request_id, last.prompt, last.prompt_token_ids) == ("mine", "ab", expected.prompt_token_ids)


@looped
async def test_many_at_once_get_what_each_gets_alone(engine: AsyncLLM, llm: LLM):
    prompts = [[5 + i, 6, 7] for i in range(30)]
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY, use_tqdm=False)]
    found = await asyncio.gather(*(collect(engine, prompt) for prompt in prompts))
    assert [outputs[-1].outputs[0].token_ids for outputs in found] == expected
    assert len({outputs[-1].request_id for outputs in found}) == 30


@looped
async def test_several_answers_end_together(engine: AsyncLLM, llm: LLM):
    params = SamplingParams(n=3, seed=1, max_tokens=6, stop="a", logprobs=1)
    outputs = await collect(engine, "ab", params)
    (expected,) = llm.generate("ab", params, use_tqdm=False)
    assert [(a.text, a.finish_reason) for a in outputs[-1].outputs] == [
        (a.text, a.finish_reason) for a in expected.outputs
    ]
    assert sum(output.finished for output in outputs) == 1


@looped
async def test_a_stop_string_ends_the_engines_part(engine: AsyncLLM, llm: LLM):
    (plain,) = llm.generate("ab", GREEDY, use_tqdm=False)
    stop = plain.outputs[0].text[2:4]
    outputs = await collect(engine, "ab", SamplingParams(temperature=0, max_tokens=200, stop=stop))
    await at_rest(engine)
    (answer,) = outputs[-1].outputs
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)


@looped
async def test_leaving_the_loop_ends_the_request(engine: AsyncLLM):
    async with aclosing(engine.generate("ab", LONG)) as outputs:
        async for _ in outputs:
            break
    await at_rest(engine)


@looped
async def test_a_cancelled_task_ends_its_request(engine: AsyncLLM):
    tasks = [asyncio.create_task(collect(engine, [5, i], LONG)) for i in range(12)]
    while len(engine._loop._boxes) < 12:
        await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(found, asyncio.CancelledError) for found in done[::2])
    assert all(found[-1].outputs[0].finish_reason == "length" for found in done[1::2])
    await at_rest(engine)


@looped
async def test_abort_gives_a_last_output(engine: AsyncLLM):
    async for output in engine.generate("ab", SamplingParams(n=4, max_tokens=200), request_id="x"):
        last = output
        await engine.abort("x")
    await engine.abort("x")
    await engine.abort("nobody")
    await at_rest(engine)
    assert last.finished
    assert {answer.finish_reason for answer in last.outputs} == {"abort"}
    assert all(len(answer.token_ids) < 200 for answer in last.outputs)


@looped
async def test_an_id_in_use_is_refused_and_can_be_used_again(engine: AsyncLLM):
    first = engine.generate("ab", LONG, request_id="x")
    await anext(first)
    with pytest.raises(Refused, match="in use"):
        await collect(engine, "cd", request_id="x")
    await first.aclose()
    for prompt in ("ef", "gh"):  # at once: the engine still works at what the first one left
        outputs = await collect(engine, prompt, request_id="x")
        assert len(outputs[-1].outputs[0].token_ids) == 8
    await at_rest(engine)


@looped
async def test_an_id_taken_over_gets_nothing_of_its_former_owner(engine: AsyncLLM, llm: LLM):
    (expected,) = llm.generate("ef", GREEDY, use_tqdm=False)
    for _ in range(30):
        first = engine.generate("ab", LONG, request_id="x")
        await anext(first)
        await first.aclose()
        outputs = await collect(engine, "ef", request_id="x")
        assert outputs[-1].outputs == expected.outputs


@looped
async def test_what_cannot_be_served_is_refused_before_anything_runs(engine: AsyncLLM):
    for prompt, fault in (("", Refused), ("x" * 300, TooLong), ([9999], Refused), (None, Refused)):
        with pytest.raises(fault):
            await collect(engine, prompt)
    await at_rest(engine)


@looped
async def test_salts_of_either_place(engine: AsyncLLM):
    prompt = "a" * 40
    calls = [(prompt, ""), (prompt, ""), (prompt, "s"), ({"prompt": prompt, "cache_salt": "s"}, "")]
    found = [(await collect(engine, ask, cache_salt=salt))[-1].num_cached_tokens for ask, salt in calls]
    assert found == [0, 32, 0, 32]


@pytest.mark.parametrize("overlap", ["on", "off"])
@looped
async def test_when_the_engine_fails_everybody_hears_of_it(
    folder: Path, overlap: str, caplog: pytest.LogCaptureFixture
):
    engine = AsyncLLM(str(folder), **tiny.SMALL, **{"schedule.overlap": overlap})
    runner = engine._loop._engine.runner
    real, steps = runner.run, []

    def fail(step):
        steps.append(step)
        if len(steps) > 5:
            raise RuntimeError("the device is gone")
        return real(step)

    def gone():
        raise RuntimeError("the device is gone")

    runner.run, runner.check = fail, gone
    tasks = [collect(engine, [5, i], LONG) for i in range(12)]
    tasks.append(collect(engine, "ab", SamplingParams(n=3, max_tokens=200)))
    for found in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(found, Broken)
        assert "the device is gone" in found.message
    with pytest.raises(Broken, match="the device is gone"):
        await collect(engine, "late")
    assert not engine._open
    engine.shutdown()
    assert "the engine's thread failed" in caplog.text
    with pytest.raises(Broken, match="shut down"):
        await collect(engine, "later")


@looped
async def test_shutdown_ends_what_runs(folder: Path):
    engine = AsyncLLM(str(folder), **tiny.SMALL)
    runner = engine._loop._engine.runner
    real, reached, going = runner.run, threading.Event(), threading.Event()

    def wait(step):
        if len(step) == 8:  # all rows are taken: hold the engine until it has been told to stop
            reached.set()
            going.wait()
        return real(step)

    runner.run = wait
    tasks = [asyncio.create_task(collect(engine, [5, i], LONG)) for i in range(12)]
    await asyncio.to_thread(reached.wait)
    stopping = asyncio.create_task(asyncio.to_thread(engine.shutdown))
    while not engine._stopped:
        await asyncio.sleep(0)
    going.set()
    await stopping
    for found in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(found, Broken)
        assert "shut down" in found.message
    engine.shutdown()  # once more does no harm
    assert not engine._loop.thread.is_alive()


def test_several_event_loops_share_an_engine(engine: AsyncLLM, llm: LLM):
    prompts = [[5 + i, 6] for i in range(8)]
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY, use_tqdm=False)]
    found: dict[int, list[int]] = {}

    def one(i: int) -> None:
        found[i] = asyncio.run(collect(engine, prompts[i]))[-1].outputs[0].token_ids

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(8)] == expected


def test_an_event_loop_that_closes_too_early_disturbs_nobody(engine: AsyncLLM):
    loop = asyncio.new_event_loop()
    abandoned = engine.generate("ab", LONG)
    loop.run_until_complete(anext(abandoned))
    loop.close()
    assert asyncio.run(collect(engine, "cd"))[-1].finished
    with suppress(RuntimeError):
        asyncio.run(abandoned.aclose())


@looped
async def test_an_iterator_that_was_never_begun_costs_nothing(engine: AsyncLLM):
    await engine.generate("ab", LONG).aclose()
    await at_rest(engine)
