"""The shapes of well-known models, so that a plan for them needs no network: what their config.json says of sizes."""

from typing import Any

from headrace.bench.shapes import SHAPES, sized


def _shape(
    kind: str, sizes: tuple[int, int, int, int, int], vocab: int, longest: int, **more: Any
) -> dict[str, Any]:
    """`sizes`: hidden, feed-forward, layers, query heads, KV heads."""
    hidden, inner, layers, heads, kv = sizes
    like = {"model_type": kind, "vocab_size": vocab, "max_position_embeddings": longest, "dtype": "bfloat16"}
    return sized(like, hidden, inner, layers, heads, kv, tied=False) | more


_LATENT = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_RECURRENT = {
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
}

KNOWN: dict[str, dict[str, Any]] = SHAPES | {
    "llama-3.1-70b": _shape("llama", (8192, 28672, 80, 64, 8), 128256, 131072, head_dim=128),
    "llama-3.1-405b": _shape("llama", (16384, 53248, 126, 128, 8), 128256, 131072, head_dim=128),
    "qwen2.5-7b": _shape("qwen2", (3584, 18944, 28, 28, 4), 152064, 32768),
    "qwen3-14b": _shape("qwen3", (5120, 17408, 40, 40, 8), 151936, 40960, head_dim=128),
    "qwen3-32b": _shape("qwen3", (5120, 25600, 64, 64, 8), 151936, 40960, head_dim=128),
    "qwen3-30b-a3b": _shape("qwen3_moe", (2048, 6144, 48, 32, 4), 151936, 40960, head_dim=128)
    | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1},
    "qwen3-235b-a22b": _shape("qwen3_moe", (4096, 12288, 94, 64, 4), 151936, 40960, head_dim=128)
    | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536, "decoder_sparse_step": 1},
    "qwen3-next-80b-a3b": _shape("qwen3_next", (2048, 5120, 48, 16, 2), 151936, 262144, head_dim=256)
    | {"num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512, "decoder_sparse_step": 1}
    | {"shared_expert_intermediate_size": 512, **_RECURRENT},
    "mistral-7b-v0.1": _shape("mistral", (4096, 14336, 32, 32, 8), 32000, 32768, sliding_window=4096),
    "mistral-small-24b": _shape("mistral", (5120, 32768, 40, 32, 8), 131072, 32768, head_dim=128),
    "mixtral-8x7b": _shape("mixtral", (4096, 14336, 32, 32, 8), 32000, 32768)
    | {"num_local_experts": 8, "num_experts_per_tok": 2},
    "gemma-3-27b": _shape("gemma3_text", (5376, 21504, 62, 32, 16), 262208, 131072, head_dim=128)
    | {"sliding_window": 1024, "sliding_window_pattern": 6, "tie_word_embeddings": True},
    "phi-4": _shape("phi3", (5120, 17920, 40, 40, 10), 100352, 16384),
    "gpt-oss-120b": _shape("gpt_oss", (2880, 2880, 36, 64, 8), 201088, 131072, head_dim=64)
    | {"num_local_experts": 128, "num_experts_per_tok": 4, "sliding_window": 128, "attention_bias": True}
    | {"quantization_config": {"quant_method": "mxfp4"}},
    "gpt-oss-20b": _shape("gpt_oss", (2880, 2880, 24, 64, 8), 201088, 131072, head_dim=64)
    | {"num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128, "attention_bias": True}
    | {"quantization_config": {"quant_method": "mxfp4"}},
    "deepseek-v3": _shape("deepseek_v3", (7168, 18432, 61, 128, 128), 129280, 163840, **_LATENT)
    | {
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_shared_experts": 1,
    }
    | {"first_k_dense_replace": 3, "quantization_config": {"quant_method": "fp8"}},
}
"""Name -> what dissect reads. bench/shapes.py has those that can be run; these are for planning only."""
