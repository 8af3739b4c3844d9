"""A step cut in two gives what it gives as a whole, wherever it is cut."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from headrace.engine import script
from headrace.engine.batch import Batch
from headrace.engine.halves import LEAST, Part, middle
from headrace.engine.lanes import QUERIES
from headrace.engine.request import SamplingParams
from headrace.kernels import int8
from headrace.models import llama
from tests.engine.test_engine import ask
from tests.engine.test_script import compare, started

FEW = [1] * 20


@pytest.mark.parametrize(
    ("sizes", "cut"),
    [
        ([LEAST], LEAST // 2),
        ([LEAST - 1], 0),
        ([*FEW, LEAST], (LEAST + 20) // 2),
        ([*FEW * 5, 80], 100),
        ([*FEW * 6, 70], 0),
        ([LEAST, 1], 0),
        ([1] * 5, 2),
        ([1, 1, QUERIES, 1], 2),
        ([1], 0),
    ],
    ids=[
        "a prompt",
        "short",
        "decoding first",
        "much decoding",
        "too much",
        "decoding last",
        "decoding alone",
        "with guesses",
        "one row",
    ],
)
def test_where_a_step_is_cut(sizes: list[int], cut: int):
    """By the number of tokens, where keys are nothing to their products."""
    assert middle(np.array([0, *sizes]).cumsum(), np.array(sizes), QUERIES, 1e9) == cut


@pytest.mark.parametrize(("context", "cut"), [(512, 274), (8192, 259)])
def test_the_first_part_of_a_prompt_is_longer_as_it_sees_fewer_keys(context: int, cut: int):
    assert middle(np.array([0, 512]), np.array([context]), QUERIES, 1500.0) == cut


def test_the_parts_of_a_row_see_what_the_row_sees():
    batch: Any = SimpleNamespace(
        starts_np=np.array([0, 2, 12, 20]), context_np=np.array([30, 10, 8]), row_slots_np=np.array([4, 2, 7]),
        tables=[torch.arange(6).view(3, 2)], table_np=None, stays=None, block_size=16,
    )  # fmt: skip
    first, second = (Part.of(cast(Batch, batch), *span) for span in ((0, 9), (9, 20)))
    assert (first.tokens, first.starts_np.tolist(), first.context_np.tolist()) == (9, [0, 2, 9], [30, 7])
    assert (second.tokens, second.starts_np.tolist(), second.context_np.tolist()) == (11, [0, 3, 11], [10, 8])
    assert (first.row_slots_np.tolist(), second.row_slots_np.tolist()) == ([4, 2], [2, 7])
    assert second.tables_np.tolist() == [[2, 3], [4, 5]]
    assert Part.of(cast(Batch, batch), 0, 12).context_np.tolist() == [30, 10]


@pytest.fixture
def threads():
    """What `started` takes to have two; as many as before afterwards."""
    before = torch.get_num_threads()
    yield {"model.threads": 2}
    torch.set_num_threads(before)


@pytest.mark.skipif(int8.missing() is not None, reason="no 8-bit products on this processor")
@pytest.mark.parametrize("at", [20, 51, 100, 131])
def test_halves_say_what_the_layers_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: dict[str, Any], at: int
):
    """Between two rows, in the middle of one, and where a half has but one token of it."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(script, "middle", lambda starts, *_: at * (starts[-1] > at))
    begun = started(tmp_path, llama.TINY, **threads)
    for n, length in enumerate((20, 30, 50, 32)):
        begun.engine.add(
            ask(n, [3 + (n * 11 + i * 7) % 250 for i in range(length)], SamplingParams(max_tokens=3))
        )
    assert compare(begun, 1, 0.999999) == [4]
    assert torch.get_num_threads() == 2
    assert compare(begun, 1, 0.999999) == [4]


@pytest.mark.skipif(int8.missing() is not None, reason="no 8-bit products on this processor")
def test_with_deterministic_halves_change_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: dict[str, Any]
):
    begun = started(tmp_path, llama.TINY, deterministic=True, **threads)
    runner = begun.engine.runner
    if runner.script is None:
        pytest.skip("this machine's products depend on company")
    for n, length in enumerate((40, 30, 70)):
        begun.engine.add(
            ask(n, [3 + (n * 11 + i * 7) % 250 for i in range(length)], SamplingParams(max_tokens=3))
        )
    step, found = begun.engine.scheduler.plan(), []
    for at in (0, 1, 55, 70, 139):
        monkeypatch.setattr(script, "middle", lambda *_, at=at: at)
        with torch.inference_mode():
            runner._admit(step)
            runner.batch.fill(step)
            found.append(runner.script())
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.skipif(int8.missing() is not None, reason="no 8-bit products on this processor")
def test_a_half_that_fails_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: dict[str, Any]
):
    begun = started(tmp_path, llama.TINY, **threads)
    made = begun.engine.runner.script
    assert made is not None
    run = made._step

    def failing(x: torch.Tensor, *more: Any) -> torch.Tensor:
        if len(x) == 68:  # the first half of 136
            raise MemoryError
        return run(x, *more)

    monkeypatch.setattr(made, "_step", failing)
    begun.engine.add(ask("a", [5] * 136 + [6] * 4, SamplingParams(max_tokens=3)))
    step = begun.engine.scheduler.plan()
    made._batch.fill(step)
    monkeypatch.setattr(script, "middle", lambda *_: 68)
    with pytest.raises(MemoryError), torch.inference_mode():
        made()
    assert torch.get_num_threads() == 2
