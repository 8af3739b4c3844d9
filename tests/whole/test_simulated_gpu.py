"""A simulated GPU says what the CPU says, up to near-ties: with graphs or without, evicted, rounded, masked, drawn."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.api.llm import LLM
from headrace.api.outputs import RequestOutput
from headrace.engine import constrain
from headrace.engine.constrain import Masks
from headrace.engine.graphs import Key, Masked, Mixed
from headrace.engine.request import SamplingParams
from headrace.engine.structured import StructuredOutputsParams
from headrace.kernels.sample import Draws
from headrace.models.gemma import TINY as GEMMA_TINY
from headrace.models.llama import TINY as LLAMA_TINY
from headrace.models.qwen import TINY as QWEN_TINY
from tests import tiny
from tests.simulated_cuda import gpu as gpu
from tests.simulated_cuda import interpreted as interpreted
from tests.simulated_gpu import Gpu
from tests.whole.test_gpu import agreed, both_ways

SMALL = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "qwen": {**QWEN_TINY, **SMALL, "model_type": "qwen3", "use_sliding_window": False},
    "llama": {**LLAMA_TINY, **SMALL, "head_dim": 64},
    "gemma": {**GEMMA_TINY, **SMALL, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip
NAMES: dict[str, Any] = {
    # Triton's interpreter multiplies bfloat16 wrongly.
    "dtype": "float16", "num_gpu_blocks_override": 40, "max_num_seqs": 4, "max_num_batched_tokens": 32,
}  # fmt: skip
PROMPTS = [[9], list(range(10, 28)), [7, 8, 9]]
CAPTURE = "headrace.engine.graphs._capture"


@pytest.fixture(autouse=True, scope="module")
def beside() -> Iterator[None]:
    """Masks of few rows are made as those of many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constrain, "BESIDE", 0)
        yield


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny.folder(tmp_path / "model", MODELS[getattr(request, "param", "qwen")], seed=3)


def engine(folder: Path, **names: Any) -> LLM:
    return LLM(str(folder), **{**NAMES, "device": "cuda", **names})


def answers(
    llm: LLM, params: SamplingParams | Sequence[SamplingParams], prompts: Sequence[Sequence[int]] = PROMPTS
) -> list[RequestOutput]:
    given = [{"prompt_token_ids": list(ids)} for ids in prompts]
    return llm.generate(given, params, use_tqdm=False)  # pyright: ignore[reportArgumentType]


def greedy(count: int = 4, logprobs: int | None = 5) -> SamplingParams:
    return SamplingParams(temperature=0, ignore_eos=True, max_tokens=count, logprobs=logprobs)


def assert_agree(
    gpu: Gpu, folder: Path, prompts: Sequence[Sequence[int]] = PROMPTS, params: Any = None, **names: Any
) -> LLM:
    """Answers are the CPU's; nothing but a first capture waits for the device, besides for tokens."""
    params = params or greedy()
    expected = answers(engine(folder, **{**names, "device": "cpu"}), params, prompts)
    llm = engine(folder, **names)
    gpu.waits.clear()
    assert sum(map(agreed, expected, answers(llm, params, prompts))) >= 2 * len(prompts)
    assert set(gpu.waits) <= {CAPTURE}
    return llm


WAYS: dict[str, dict[str, Any]] = {
    "eager": {"enforce_eager": True},
    "one step at a time": {"async_scheduling": False},
    "deterministic": {"deterministic": True},
    "eight bits in the cache": {"kv_cache_dtype": "fp8"},
}


@pytest.mark.parametrize("way", WAYS)
def test_greedy_answers_agree(folder: Path, gpu: Gpu, way: str):
    assert_agree(gpu, folder, **WAYS[way])
    assert (gpu.replays > 0) == (way != "eager")


def test_a_device_that_is_never_behind(folder: Path, gpu: Gpu):
    """By default it is as late as can be, so that what the host writes too early is seen."""
    gpu.early = True
    assert_agree(gpu, folder, [[5, 6], [7, 8, 9]])


@pytest.mark.parametrize("folder", ["llama", "gemma"], indirect=True)
def test_architectures_agree(folder: Path, gpu: Gpu):
    assert_agree(gpu, folder)


def test_what_kernels_do_not_take_is_left_to_the_reference(folder: Path, gpu: Gpu):
    expected, found = (
        answers(engine(folder, device=on, dtype="float32"), greedy()) for on in ("cpu", "cuda")
    )
    assert sum(map(agreed, expected, found)) == 12
    assert not gpu.replays


@pytest.mark.parametrize(
    ("scheme", "kernels"),
    [
        ("fp8", {"round_kernel", "gemv8_kernel"}),
        ("w8a8", {"round_kernel", "gemv8_kernel"}),
        ("w8a16", {"gemv8_kernel"}),
        ("w4a16_g32", {"tile_kernel", "few_kernel", "one_kernel"}),
        ("nvfp4", set()),
        ("mxfp4", set()),
    ],
)
def test_quantized(folder: Path, gpu: Gpu, scheme: str, kernels: set[str]):
    assert_agree(gpu, folder, PROMPTS[1:], [greedy(2), greedy(3)], quantization=scheme)
    assert kernels <= set(gpu.launched)


def test_evicted(folder: Path, gpu: Gpu):
    llm = assert_agree(gpu, folder, [range(3, 18), range(40, 54)], num_gpu_blocks_override=3)
    assert llm.local.engine.scheduler.counts.evictions


def test_graphs_replay_what_they_were_not_made_for(folder: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch):
    """Steps of other tokens, lengths and blocks than at their capture, with prompts in them, too."""
    by_cpu, llm = engine(folder, device="cpu"), engine(folder)
    graphs = llm.local.engine.runner.graphs
    assert graphs is not None
    compared = both_ways(graphs, monkeypatch)
    for lengths, count in (((12, 10), 2), ((11, 9), 2), ((13, 8), 2), ((18, 4, 3), 1)):
        prompts = [range(n, n + length) for n, length in zip((9, 70, 120), lengths, strict=False)]
        expected, found = (answers(one, greedy(count), prompts) for one in (by_cpu, llm))
        assert sum(map(agreed, expected, found)) == count * len(lengths)
    assert compared == [2, 2, 2]
    assert {type(key) for key in graphs.captured} == {Key, Mixed}
    assert len(graphs.captured) == 2
    assert gpu.replays == 2 * len(compared) + 2, "each step twice, and prompts from the third time on"


def test_a_capture_that_fails_is_over(folder: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch):
    """As where memory runs out meanwhile: the request ends with an error, and the next one has its graphs."""
    llm = engine(folder)
    model = llm.local.engine.runner.model
    logits, failed = model.logits, []

    def once(hidden_SE: torch.Tensor) -> torch.Tensor:
        if gpu.recording and not failed:
            failed.append(1)
            raise RuntimeError("no memory left")
        return logits(hidden_SE)

    monkeypatch.setattr(model, "logits", once)
    by_cpu = answers(engine(folder, device="cpu"), greedy(3, None), [[5]])
    (failing,), (next_one,) = (answers(llm, greedy(3, None), [[5]]) for _ in range(2))
    assert failing.outputs[0].finish_reason == "error"
    assert next_one.outputs[0].token_ids == by_cpu[0].outputs[0].token_ids
    assert gpu.replays == 2
    assert gpu.waits.count("headrace.engine.runner.check") == 1


ASKED: dict[str, list[dict[str, Any]]] = {
    "draws": [{"seed": 3}, {"seed": 4, "top_k": 9, "top_p": 0.9}, {"seed": 5, "min_p": 0.1}, {"temperature": 0}],
    "edits": [
        {"temperature": 0, "repetition_penalty": 1.5, "presence_penalty": 1.0, "logprobs": 3},
        {"temperature": 0, "logit_bias": {65: 100.0, 66: 95.0}, "frequency_penalty": 2.0},
        {"seed": 6, "allowed_token_ids": [70, 71, 72], "bad_words": ["CD", "E"], "min_tokens": 2},
        {"seed": 7},
    ],
    "masks": [
        {"seed": 8, "structured_outputs": StructuredOutputsParams(regex="[ab]{9}")}, {"seed": 9},
        {"temperature": 0, "structured_outputs": StructuredOutputsParams(choice=["yes", "no"])},
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", ASKED)
def test_requests_get_what_they_ask_for(folder: Path, gpu: Gpu, kind: str):
    """Draws are the CPU's by these seeds; by others one may be so close that rounding decides."""
    asked = [SamplingParams(**{"max_tokens": 3, "ignore_eos": True, **names}) for names in ASKED[kind]]
    llms = engine(folder, device="cpu"), engine(folder)
    gpu.waits.clear()
    expected, found = (answers(llm, asked, (PROMPTS * 2)[: len(asked)]) for llm in llms)
    assert [one.outputs[0].token_ids for one in found] == [one.outputs[0].token_ids for one in expected]
    assert set(gpu.waits) == {CAPTURE}
    graphs = llms[1].local.engine.runner.graphs
    assert graphs is not None
    assert {type(key) for key in graphs.captured} == ({Key, Masked} if kind == "masks" else {Key})
    assert all(
        isinstance(key, Key) and (key.draws is None) == (kind == "edits") for key in graphs.captured
    ) or (kind == "masks")


@pytest.mark.parametrize("ahead", [False, True])
def test_masks_come_beside_the_forward_pass_and_in_time(
    folder: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, ahead: bool
):
    """Each allows one token, which the one before it did not; rows come to lie elsewhere as others end."""
    texts = {"abc": 7, "": 4, "ba": 3, "cab": 7}
    asked = [
        SamplingParams(
            seed=n, max_tokens=count, ignore_eos=True,
            structured_outputs=StructuredOutputsParams(regex=f"({text}){{9}}") if text else None,
        )
        for n, (text, count) in enumerate(texts.items())
    ]  # fmt: skip
    llm, came, main = engine(folder), list[tuple[bool, bool]](), gpu.queues[0]
    graphs = llm.local.engine.runner.graphs
    assert graphs is not None
    draw = graphs.draw

    def watched(draws: Draws, masks: Masks) -> torch.Tensor:
        before, out, places = len(main), draw(draws, masks), graphs._places
        assert places is not None
        bits: Any = places.bits_MW[: len(masks.rows)]
        came.append((len(main) > before > 0, torch.equal(bits.memory, masks.bits)))
        return out

    monkeypatch.setattr(graphs, "draw", watched)
    gpu.ahead = ahead
    found = answers(llm, asked, [[n + 5] for n in range(len(asked))])
    for one, (text, count) in zip(found, texts.items(), strict=True):
        assert not text or one.outputs[0].text == (text * 9)[:count]
    assert len(came) == 6
    assert came[-1] == (True, ahead), "the forward pass has not begun"


# -- the simulation itself


def test_memory_of_the_host_is_read_late_and_never_mixed(gpu: Gpu):
    pinned, there = torch.ones(2).pin_memory(), torch.zeros(2, device="cuda")
    there.copy_(pinned, non_blocking=True)
    pinned.fill_(2)
    assert not gpu.waits
    assert there.tolist() == [2, 2]
    assert len(gpu.waits) == 1
    assert torch.empty(2, device="cuda").isnan().all()
    with pytest.raises(RuntimeError, match="one device"):
        there.add(torch.ones(2))


def test_a_graph_keeps_numbers_and_reads_memory(gpu: Gpu):
    source, number, graph = torch.ones(2, device="cuda"), 3, torch.cuda.CUDAGraph()
    graph.capture_begin(None, "thread_local")
    out = (source * number) + torch.tensor(number)
    with pytest.raises(RuntimeError, match="capturing"):
        out.tolist()
    graph.capture_end()
    number += 1
    source.fill_(5)
    assert out.isnan().all(), "nothing ran yet"
    graph.replay()
    assert out.tolist() == [18, 18]


def test_a_kernel_gets_what_it_takes(gpu: Gpu):
    from headrace.kernels.gpu import forbid

    kernel: Any = forbid.forbid_kernel
    logits, rows = torch.zeros(2, 9, device="cuda"), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="cpu tensor"):
        kernel[(1, 1)](logits, rows, logits, 9, 9, 1, BLOCK=16)
    with pytest.raises(KeyError, match="TILE"):
        kernel[(1, 1)](logits, logits, logits, 9, 9, 1, TILE=16)


def test_streams_meet_by_events_alone(gpu: Gpu):
    first, other = torch.cuda.current_stream(), torch.cuda.Stream()
    pinned, there = torch.ones(2).pin_memory(), torch.zeros(2, device="cuda")

    def send() -> None:
        with torch.cuda.stream(other):
            there.copy_(pinned, non_blocking=True)

    send()
    assert there.tolist() == [0, 0]
    first.wait_stream(other)
    assert there.tolist() == [1, 1]
    gpu.ahead = True
    there.fill_(2)
    send()
    assert there.tolist() == [2, 2]
    other.wait_stream(first)
    send()
    assert there.tolist() == [1, 1]
