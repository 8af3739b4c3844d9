"""Modules that play other engines, and a Python that finds them."""

import stat
import sys
from pathlib import Path

# A module that plays vLLM: answers at once, writes down what it was asked, and can be told to fail.
FAKE_VLLM = """
import json, os, sys, time
from types import SimpleNamespace as N
__version__ = "9.9"
SamplingParams = lambda **kw: N(**kw)
print("vllm says hello")
class LLM:
    def __init__(self, model, **options):
        self.options = options
        if options.get("broken") == "start":
            raise ValueError("no such model")
        if options.get("broken") == "exit":
            sys.stdout.flush(); os._exit(3)
    def generate(self, prompts, params, use_tqdm):
        if self.options.get("broken") == "run":
            raise RuntimeError("out of memory")
        if self.options.get("broken") == "hang":
            time.sleep(1000)
        with open(self.options["log"], "a") as file:
            file.write(json.dumps([p["prompt_token_ids"] for p in prompts]) + "\\n")
        short = 1 if self.options.get("broken") == "short" else 0
        return [N(outputs=[N(token_ids=[0] * (p.max_tokens - short))]) for p in params]
"""
# One that plays llama-cpp-python: the next token is the last one plus one, as its "logits" have it.
FAKE_LLAMA = """
import ctypes, numpy as np
from types import SimpleNamespace as N
__version__ = "8.8"
V = 50
def nothing(*a): return None
llama_backend_init = llama_log_set = llama_batch_free = llama_free = nothing
llama_log_callback = lambda f: f
llama_model_default_params = llama_context_default_params = lambda: N()
llama_model_load_from_file = lambda path, params: None if b"missing" in path else N()
def llama_init_from_model(model, params): return N(state={}, params=params)
class Rows(dict):
    def __missing__(self, key): return self.setdefault(key, {})
def llama_batch_init(n, e, s): return N(n_tokens=0, token={}, pos={}, n_seq_id={}, seq_id=Rows(), logits={})
def llama_decode(context, batch):
    assert 0 < batch.n_tokens <= 2048
    context.rows = [(batch.token[i], batch.pos[i], batch.seq_id[i][0]) for i in range(batch.n_tokens)]
    for token, pos, seq in context.rows:
        assert context.state.get(seq, 0) == pos, "a position was left out"
        context.state[seq] = pos + 1
    return 0
def llama_get_logits_ith(context, i):
    row = np.zeros(V, np.float32); row[(context.rows[i][0] + 1) % V] = 1
    context.kept = row
    return row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
"""


def fake_python(folder: Path) -> Path:
    """An executable in `folder`, as if of an environment that has both engines."""
    (folder / "site").mkdir()
    (folder / "site/vllm.py").write_text(FAKE_VLLM)
    (folder / "site/llama_cpp.py").write_text(FAKE_LLAMA)
    file = folder / "python"
    start = "import runpy, sys; sys.path.insert(0, sys.argv[1]); del sys.argv[:2]"
    start += "; script = sys.argv[0]; runpy.run_path(script, run_name='__main__')"
    # sh: $1 is -I, which a true environment's Python takes; this one has to find the fakes
    file.write_text(f'#!/bin/sh\nshift\nexec "{sys.executable}" -c "{start}" "{folder}/site" "$@"\n')
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file
