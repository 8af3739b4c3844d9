"""One engine in a process of its own, run by the Python that has it: loaded once, then told what to run over a pipe.

Stands alone: another environment's interpreter runs this file, so nothing of the package is imported but by the
engine that is the package. Started as `python -I peer.py ENGINE READ WRITE`, the last two being the pipe's ends;
`python -I peer.py ENGINE` only says by its exit code whether the engine is there.
One message of JSON each way: first the settings and {"ready": ...}, then a workload and {"seconds": ..., "made": ...}.
"""

import json
import sys
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

Work = tuple[list[list[int]], list[int]]
Runner = Callable[[Work], tuple[float, int]]
"""Runs prompts for so many tokens each; the seconds it took, and how many tokens were made."""
Started = tuple[dict[str, Any], Runner]
"""What the engine says of itself, and how it is run."""


def _generates(llm: Any, params_class: Any, settings: dict[str, Any]) -> Runner:
    """How an engine with vLLM's `LLM` and `SamplingParams` is run."""

    def run(work: Work) -> tuple[float, int]:
        params = [
            params_class(temperature=settings["temperature"], ignore_eos=True, max_tokens=n, detokenize=False)
            for n in work[1]
        ]
        prompts = [{"prompt_token_ids": ids} for ids in work[0]]
        began = perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return perf_counter() - began, sum(len(o.outputs[0].token_ids) for o in outputs)

    return run


def headrace(settings: dict[str, Any]) -> Started:
    """This engine. `settings`: knobs by their dotted names."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from headrace import LLM, SamplingParams, __version__
    from headrace.base.config import Config, replace_dotted
    from headrace.base.words import dtype_name

    llm = LLM(config=replace_dotted(Config(), settings["knobs"]))
    gpu = None
    if llm.plan.device.type == "cuda":
        import torch

        gpu = torch.cuda.get_device_name(llm.plan.device)

    said = {"version": __version__, "vocab": llm.intake.vocab, "gpu": gpu, "kv_tokens": llm.plan.kv_tokens}
    said |= {"dtype": dtype_name(llm.plan.dtype), "threads": llm.plan.threads}
    return said, _generates(llm, SamplingParams, settings)


def vllm(settings: dict[str, Any]) -> Started:
    """vLLM, through its `LLM`. `settings["options"]` are arguments of it."""
    from vllm import LLM, SamplingParams, __version__  # pyright: ignore[reportMissingImports]

    usual = {"skip_tokenizer_init": True, "disable_log_stats": True, "dtype": "bfloat16"}
    llm = LLM(settings["model"], **(usual | settings["options"]))

    return {"version": __version__}, _generates(llm, SamplingParams, settings)


def llama_cpp(settings: dict[str, Any]) -> Started:
    """llama.cpp, through the C functions that llama-cpp-python binds: all sequences in one batch, likeliest token."""
    import ctypes

    import llama_cpp as lib  # pyright: ignore[reportMissingImports]

    lib.llama_backend_init()
    silent = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    model = lib.llama_model_load_from_file(settings["model"].encode(), lib.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {settings['model']}")
    threads = settings["threads"]

    def run(work: Work) -> tuple[float, int]:
        context = _llama_context(lib, model, work, threads)
        batch = lib.llama_batch_init(LLAMA_BATCH, 0, 1)
        try:
            began = perf_counter()
            made = _llama_generate(lib, context, batch, work, settings["vocab"])
            return perf_counter() - began, made
        finally:
            lib.llama_batch_free(batch)
            lib.llama_free(context)

    run.__dict__["silent"] = silent  # the C side keeps calling it
    return {"version": lib.__version__, "threads": threads}, run


LLAMA_BATCH = 2048


def _llama_context(lib: Any, model: Any, work: Work, threads: int) -> Any:
    params = lib.llama_context_default_params()
    params.n_ctx = sum(len(p) + n + 8 for p, n in zip(*work, strict=True)) + 64
    params.n_batch, params.n_ubatch = LLAMA_BATCH, 512
    params.n_seq_max = len(work[0])
    params.n_threads = params.n_threads_batch = threads
    params.kv_unified = True  # one buffer for all sequences, as their lengths differ
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError(f"llama.cpp cannot make a context of {params.n_ctx} tokens")
    return context


def _llama_generate(lib: Any, context: Any, batch: Any, work: Work, vocab: int) -> int:
    """Prompts in full batches, then one token of each sequence that is not done, until all are; tokens made."""
    import numpy as np

    last: dict[int, int] = {}

    def decode(items: list[tuple[int, int, int, bool]]) -> None:
        batch.n_tokens = len(items)
        for i, (token, position, sequence, wanted) in enumerate(items):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        if lib.llama_decode(context, batch):
            raise RuntimeError("llama.cpp could not compute a batch")
        for i, (_, _, sequence, wanted) in enumerate(items):
            if wanted:
                logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), (vocab,))
                last[sequence] = int(logits.argmax())

    prompts, outputs = work
    items = [
        (token, position, sequence, position == len(prompt) - 1)
        for sequence, prompt in enumerate(prompts)
        for position, token in enumerate(prompt)
    ]
    for start in range(0, len(items), LLAMA_BATCH):
        decode(items[start : start + LLAMA_BATCH])
    made = [1] * len(prompts)
    while rows := [s for s, n in enumerate(outputs) if made[s] < n]:
        decode([(last[s], len(prompts[s]) + made[s] - 1, s, True) for s in rows])
        for s in rows:
            made[s] += 1
    return sum(made)


ENGINES: dict[str, Callable[[dict[str, Any]], Started]] = {
    "headrace": headrace,
    "vllm": vllm,
    "llama-cpp": llama_cpp,
}


def main(name: str, read: int, write: int) -> None:
    """Start the engine and serve workloads until the other end is closed. What goes wrong is said, and is the end."""
    asked, answers = Connection(read, writable=False), Connection(write, readable=False)

    def answer(said: dict[str, Any]) -> None:
        answers.send_bytes(json.dumps(said).encode())

    try:
        began = perf_counter()
        facts, run = ENGINES[name](json.loads(asked.recv_bytes()))
        answer({"ready": facts | {"start_s": round(perf_counter() - began, 2)}})
        while work := _next(asked):
            seconds, made = run((work["prompts"], work["outputs"]))
            answer({"seconds": seconds, "made": made})
    except BaseException as fault:
        traceback.print_exc()
        sys.stdout.flush()  # who hears of the error looks at once at what was printed before it
        answer({"error": f"{type(fault).__name__}: {fault}"})
        raise SystemExit(1) from fault


def _next(asked: Connection) -> dict[str, Any] | None:
    """The next workload; None where there is no other."""
    try:
        return json.loads(asked.recv_bytes())
    except EOFError:
        return None


if __name__ == "__main__":
    if len(sys.argv) == 2:
        sys.exit(find_spec(sys.argv[1].replace("-", "_")) is None)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
