"""With schedule.deterministic no schedule changes a bit of what a request is told."""

from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.base.errors import Refused
from headrace.engine.engine import Engine
from headrace.engine.request import Request, SamplingParams
from headrace.engine.start import start
from headrace.kernels import int8
from headrace.models import gemma, llama, qwen
from headrace.nn import decoder, prepacked
from tests import tiny

FAMILIES = {
    "llama": llama.TINY,
    "gemma": gemma.TINY,
    "qwen": qwen.TINY | {"model_type": "qwen3"},
    "int8": llama.TINY,
}
STEMS = [[5 + (7 * i + 11 * n) % 250 for i in range(40)] for n in range(2)]


WISHES: list[dict[str, Any]] = [
    {},
    {"temperature": 0, "repetition_penalty": 1.3},
    {"presence_penalty": 1.5, "top_k": 20},
    {"frequency_penalty": -1.5, "top_p": 0.8},
    {"logit_bias": {7: 3.0, 200: -100.0}, "min_p": 0.05},
    {"allowed_token_ids": [6], "max_tokens": 20},  # so that it can be guessed
    {"min_tokens": 5, "temperature": 1.5},
]


def request(number: int) -> Request:
    """Prompts that begin alike, answers of several lengths and tastes; some want to know of their prompt."""
    prompt = STEMS[number % 2][: 3 + 5 * number % 37] + [9 + number] * (number % 3)
    wanted = 0 if number % 4 == 3 else None
    params = SamplingParams(
        **{
            "temperature": 0.9,
            "seed": number,
            "logprobs": 3,
            "prompt_logprobs": wanted,
            "max_tokens": 6 + number % 5,
        }
        | WISHES[number % len(WISHES)]
    )
    return Request(
        id=str(number),
        prompt=tuple(prompt),
        params=params,
        max_tokens=params.max_tokens or 1,
        stop_ids=frozenset({80, 90}),
        bad=((50,), (60, 61), *((n, 5) for n in range(100))) if number % 5 == 4 else (),
    )


def told(engine: Engine, numbers: list[int], between: int = 0) -> dict[str, list[Any]]:
    """Tokens and log-probabilities of each request; `between` steps are made before the next one comes."""
    events = []
    for number in numbers:
        engine.add(request(number))
        for _ in range(between):
            events += engine.step()
    while engine.busy:
        events += engine.step()
    found = defaultdict(list)
    for event in events:
        if event.token is not None:
            found[event.id].append((event.token, event.logprobs))
        for entry in event.prompt_logprobs or ():
            found[event.id, "prompt"].append(entry)
    return dict(found)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "int8" and (reason := int8.missing()):
        pytest.skip(reason)
    at = tmp_path_factory.mktemp("models") / request.param
    return tiny.folder(at, FAMILIES[request.param], max_position_embeddings=128)


def made(folder: Path, **names: Any) -> Engine:
    """Of 8 bits one that runs its steps as a script."""
    eight = folder.name == "int8"
    names |= {"quantization": "int8"} if eight else {}
    engine = start(tiny.config(folder, deterministic=True, **names)).engine
    assert (engine.runner.script is not None) == eight
    return engine


@cache
def alone(folder: Path, number: int) -> dict[Any, list[Any]]:
    """In one piece, by itself, nothing cached."""
    engine = made(folder, max_num_batched_tokens=64, block_size=16, enable_prefix_caching=False)
    return told(engine, [number])


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(st.integers(0, 15), min_size=1, max_size=8, unique=True),
    step=st.sampled_from([3, 8, 17, 64]),
    rows=st.integers(1, 8),
    block=st.sampled_from([4, 16]),
    spare=st.integers(0, 12),
    between=st.integers(0, 3),
    overlap=st.sampled_from(["on", "off"]),
)
def test_no_schedule_changes_a_bit(folder, numbers, step, rows, block, spare, between, overlap):
    """Cut into pieces, in company, evicted, out of the prefix cache."""
    names = {"max_num_batched_tokens": step, "max_num_seqs": min(rows, step), "block_size": block}
    blocks = (16 + spare) * (1 if block == 16 else 4)
    engine = made(folder, num_gpu_blocks_override=blocks, **names, **{"schedule.overlap": overlap})
    found = told(engine, numbers, between)
    for number in numbers:
        for name, wanted in alone(folder, number).items():
            assert found[name] == wanted


def test_eviction_guesses_and_the_prefix_cache_were_among_them(folder):
    few = {"llama": 26, "gemma": 50, "qwen": 40, "int8": 26}[folder.name]
    engine = made(folder, num_gpu_blocks_override=few, block_size=4, max_num_batched_tokens=24)
    numbers = [
        number for number in range(16) if number % 4 != 3
    ]  # who wants to know of the prompt computes it
    told(engine, numbers[:3])
    found = told(engine, numbers)
    counts = engine.scheduler.counts
    assert counts.evictions > 0
    assert counts.cached_tokens > 0
    assert counts.accepted_tokens > 0
    for number in numbers:
        assert found[str(number)] == alone(folder, number)[str(number)]


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_without_it_bits_do_change(tmp_path: Path, quantization: str):
    """Else the tests above would show nothing."""
    if quantization == "int8" and (reason := int8.missing()):
        pytest.skip(reason)
    at = tiny.folder(tmp_path / "llama", llama.TINY)
    single = told(start(tiny.config(at, quantization=quantization)).engine, [2])
    few = tiny.config(at, quantization=quantization, max_num_batched_tokens=5)
    company = told(start(few).engine, [2, 4, 6, 8])
    assert single["2"] != company["2"]


def test_a_machine_that_cannot_is_refused(folder, monkeypatch: pytest.MonkeyPatch):
    for module in (decoder, prepacked):
        monkeypatch.setattr(module, "place_is_free", lambda weight: False)
    with pytest.raises(Refused, match="matrix products") as refused:
        made(folder)
    assert refused.value.param == "schedule.deterministic"
