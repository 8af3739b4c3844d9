"""`python use_vllm.py OUT MODEL ...`: logits of the tokens 3 to 42 by vLLM, named by the model's place."""

import os
import sys

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}

import torch
from safetensors.torch import save_file
from vllm import LLM, SamplingParams

SETTINGS = {"max_model_len": 128, "max_num_seqs": 1, "enforce_eager": True, "skip_tokenizer_init": True}
ids = list(range(3, 43))
found = {}
for number, model in enumerate(sys.argv[2:]):
    llm = LLM(model, dtype="bfloat16", max_logprobs=-1, logprobs_mode="raw_logits", **SETTINGS)
    params = SamplingParams(max_tokens=1, logprobs=-1, prompt_logprobs=-1, detokenize=False)
    (output,) = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
    rows = [*output.prompt_logprobs[1:], output.outputs[0].logprobs[0]]
    found[str(number)] = torch.tensor([[row[i].logprob for i in range(len(row))] for row in rows])
    del llm
save_file(found, sys.argv[1])
sys.stdout.write("vllm: ok\n")
