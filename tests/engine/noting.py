"""An engine that believes to be on a GPU makes steps of all kinds with launches noted: those not rehearsed before.

`python -m tests.engine.noting FOLDER` prints a list. In a process of its own, as Triton's interpreter has to be off.
"""

import json
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import headrace.kernels.gpu as kernels
from headrace.engine import start
from headrace.engine.engine import Engine
from headrace.engine.graphs import Graphs
from headrace.engine.intake import Intake
from headrace.engine.rehearsal import rehearse
from headrace.engine.request import SamplingParams
from headrace.engine.structured import StructuredOutputsParams
from headrace.kernels import configs
from headrace.kernels.ahead import noted
from headrace.models import qwen
from tests import tiny

VOCAB = 1 << 17
"""So many that 33 rows are much to draw from."""
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "head_dim": 64, "use_sliding_window": False,
}  # fmt: skip
ROWS = 40
LETTER = tiny.library().token_to_id("a") or 0
ASKED: tuple[dict[str, Any], ...] = (
    {"temperature": 0}, {"temperature": 1}, {"top_p": 0.9, "top_k": 40}, {"min_p": 0.1}, {"min_p": 0.1, "top_k": 20},
    {"temperature": 0, "logprobs": 2}, {"logprobs": 0, "top_p": 0.9}, {"presence_penalty": 1.0},
    {"structured_outputs": StructuredOutputsParams(regex="[ab]{9}")}, {"prompt_logprobs": 1}, {"n": 3}, {"n": 7},
)  # fmt: skip
"""Of requests; each kind comes alone and with the others."""


def pretend() -> None:
    """Whatever asks whether there is a GPU finds one. Kernels write nothing, so that every token is LETTER."""
    gpu = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    driver.set_active(gpu)  # pyright: ignore[reportArgumentType]
    for module in pkgutil.iter_modules(kernels.__path__):
        import_module(f"{kernels.__name__}.{module.name}")
    for name, module in list(sys.modules.items()):
        if name.startswith("headrace") and hasattr(module, "on_gpu"):
            put(module, on_gpu=lambda *tensors: True)
    put(configs, capability=lambda device: (9, 0), multiprocessors=lambda device: 132)
    for make in (torch.empty, torch.empty_like, torch.zeros, torch.full):
        put(torch, **{make.__name__: unpinned(make)})
    mm = torch.mm
    put(torch, mm=lambda a, b, out_dtype=torch.bfloat16: mm(a, b).to(out_dtype))
    put(torch.cuda, graph_pool_handle=lambda: None, Stream=lambda device: None)
    put(torch.Tensor, is_cuda=property(lambda tensor: True), pin_memory=lambda tensor: tensor)
    put(Graphs, _capture=lambda graphs, step, tried: Again(step))


def put(place: object, **values: Any) -> None:
    """For good: this process does nothing else."""
    for name, value in values.items():
        setattr(place, name, value)


def unpinned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same without pinned memory, for which there would have to be a GPU; what is empty holds letters."""

    def made(*sizes: Any, pin_memory: bool = False, **more: Any) -> Tensor:
        tensor = make(*sizes, **more)
        return tensor.fill_(LETTER) if "empty" in make.__name__ else tensor

    return made


class Again:
    """Instead of a recording."""

    def __init__(self, step: Callable[[], Tensor]):
        self.step, self.graph, self.out = step, self, step()

    def replay(self) -> None:
        self.out.copy_(self.step())


def engine_in(folder: Path) -> tuple[Engine, Intake, Graphs]:
    """With kernels for a GPU, buffers as they are there, and steps that are as if recorded."""
    at = tiny.folder(folder / "model", qwen.TINY, **SHAPE)
    config = tiny.config(
        at, max_num_seqs=ROWS, max_num_batched_tokens=256, num_gpu_blocks_override=900, max_model_len=256
    )
    found = start.look(config)
    half = torch.bfloat16
    plan = replace(found.plan, attention="triton", dtype=half, kv_dtype=half, overlap=True)
    pretend()
    model, _ = start.allocate(config, replace(found, plan=plan))
    _, runner = start._runner(model, plan, insisted=False)
    runner.script, runner.batch.staging.alias = None, False
    runner.graphs = Graphs(model, runner.batch, runner.sampler, plan.rows)
    intake = Intake(start.find_tokenizer(config, at), plan.max_len, VOCAB, frozenset())
    return Engine(plan, runner, intake.compiler), intake, runner.graphs


def serve(engine: Engine, intake: Intake, asked: Sequence[dict[str, Any]], random: Random) -> None:
    """Requests of odd lengths that end at different times."""
    for n, words in enumerate(asked):
        params = SamplingParams(max_tokens=random.randint(1, 9), ignore_eos=True, seed=n, **words)
        prompt = [3] * random.choice((1, 2, 5, 17, 40, 100, random.randint(1, 200)))
        for request in intake.requests(f"r{n}", prompt, params):
            engine.add(request)
    while engine.busy:
        assert all(event.finish != "error" for event in engine.step())


def main() -> None:
    random = Random(0)
    with TemporaryDirectory() as folder:
        engine, intake, graphs = engine_in(Path(folder))
        known = set(rehearse(graphs))
        with noted() as loads:
            for asked in ASKED:
                serve(engine, intake, [asked], random)
            for most in (2, 3, 5, 9, 12, 20, 36):
                serve(engine, intake, random.choices(ASKED, k=most), random)
                serve(engine, intake, [ASKED[most % 5]] * most, random)
        sys.stdout.write(json.dumps({"launched": sorted(loads), "missing": sorted(set(loads) - known)}))


if __name__ == "__main__":
    main()
