"""`python use_llmcompressor.py MODEL OUT`: the model in three schemes, each beside its weights as unpacked there."""

import random
import sys
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig

model, out = sys.argv[1], Path(sys.argv[2])
draw = random.Random(1)
rows = [[draw.randrange(256) for _ in range(32)] for _ in range(8)]
texts = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
four = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=64, symmetric=False)
usual = {"ignore": ["lm_head"]}
RECIPES = {
    "W4A16_ASYM": GPTQModifier(
        config_groups={"g": QuantizationScheme(targets=["Linear"], weights=four)}, **usual
    ),
    "W8A8": QuantizationModifier(targets="Linear", scheme="W8A8", **usual),
    "FP8": QuantizationModifier(targets="Linear", scheme="FP8", **usual),
}
for name, recipe in RECIPES.items():
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    oneshot(model=loaded, recipe=recipe, dataset=texts, num_calibration_samples=8, max_seq_length=32)
    loaded.save_pretrained(out / name, save_compressed=True)
    unpacking = CompressedTensorsConfig(run_compressed=False)
    again = AutoModelForCausalLM.from_pretrained(
        out / name, dtype=torch.float32, quantization_config=unpacking
    )
    with torch.no_grad():
        again(torch.tensor([[1, 2, 3]]))  # some are unpacked at their first use
    weights = {key: tensor.clone() for key, tensor in again.state_dict().items() if key.endswith(".weight")}
    save_file(weights, out / f"{name}.safetensors")
    sys.stdout.write(f"{name}: ok\n")
