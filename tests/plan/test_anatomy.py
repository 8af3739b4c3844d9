"""Parameters and KV bytes of well-known models, against numbers worked out by hand: the working stands beside each.

E hidden, F feed-forward, H query heads, K KV heads, D head size, V vocabulary, L layers. Per layer of a plain decoder:
q E*H*D, k and v 2*E*K*D, o H*D*E, gate, up and down 3*E*F, two norms 2*E.
"""

from contextlib import suppress
from typing import Any, NamedTuple

import pytest

from headrace.base.errors import BadCheckpoint, Refused
from headrace.plan.anatomy import NEEDED, dissect
from headrace.plan.known import KNOWN


class Hand(NamedTuple):
    parameters: int
    active: int
    kv_bytes: int
    """Per token, 16 bits, while every layer keeps it."""
    windows: dict[int | None, int]


HAND = {
    # E 4096, F 14336, H 32, K 8, D 128, V 128256, L 32
    # layer: q 16,777,216 + kv 2*4,194,304 + o 16,777,216 + mlp 176,160,768 + norms 8,192 = 218,112,000
    # 32 layers 6,979,584,000 + embedding and head 2*525,336,576 + norm 4,096 = 8,030,261,248
    # KV: 2 * 8 * 128 * 32 layers * 2 bytes = 131,072
    "llama-3.1-8b": Hand(8_030_261_248, 8_030_261_248, 131_072, {None: 32}),
    # E 8192, F 28672, H 64, K 8, D 128, V 128256, L 80
    # layer: q 67,108,864 + kv 2*8,388,608 + o 67,108,864 + mlp 704,643,072 + norms 16,384 = 855,654,400
    # 80 layers 68,452,352,000 + 2*1,050,673,152 + 8,192 = 70,553,706,496; KV 2*8*128*80*2 = 327,680
    "llama-3.1-70b": Hand(70_553_706_496, 70_553_706_496, 327_680, {None: 80}),
    # E 1024, F 3072, H 16, K 8, D 128 (not E/H), V 151936, L 28, tied
    # layer: q 2,097,152 + kv 2*1,048,576 + o 2,097,152 + mlp 9,437,184 + norms 2,048 + q and k norm 256 = 15,730,944
    # 28 layers 440,466,432 + embedding once 155,582,464 + 1,024 = 596,049,920; KV 2*8*128*28*2 = 114,688
    "qwen3-0.6b": Hand(596_049_920, 596_049_920, 114_688, {None: 28}),
    # E 5120, F 25600, H 64, K 8, D 128 (H*D 8192 is more than E), V 151936, L 64
    # layer: q 41,943,040 + kv 2*5,242,880 + o 41,943,040 + mlp 393,216,000 + norms 10,240 + 256 = 487,598,336
    # 64 layers 31,206,293,504 + 2*777,912,320 + 5,120 = 32,762,123,264; KV 2*8*128*64*2 = 262,144
    "qwen3-32b": Hand(32_762_123_264, 32_762_123_264, 262_144, {None: 64}),
    # E 2048, expert F 768, 128 experts of which 8, H 32, K 4, D 128, V 151936, L 48
    # attention: q 8,388,608 + kv 2*1,048,576 + o 8,388,608 = 18,874,368; expert 3*2048*768 = 4,718,592
    # layer: 18,874,368 + 128*4,718,592 (603,979,776) + router 262,144 + norms 4,096 + 256 = 623,120,640
    # 48 layers 29,909,790,720 + 2*311,164,928 + 2,048 = 30,532,122,624
    # idle: 120*4,718,592*48 = 27,179,089,920; active 3,353,032,704; KV 2*4*128*48*2 = 98,304
    "qwen3-30b-a3b": Hand(30_532_122_624, 3_353_032_704, 98_304, {None: 48}),
    # E 4096, F 14336, 8 experts of which 2, H 32, K 8, D 128, V 32000, L 32
    # attention 41,943,040; expert 176,160,768; layer 41,943,040 + 1,409,286,144 + 32,768 + 8,192 = 1,451,270,144
    # 32 layers 46,440,644,608 + 2*131,072,000 + 4,096 = 46,702,792,704
    # idle 6*176,160,768*32 = 33,822,867,456; active 12,879,925,248; KV as llama-3.1-8b
    "mixtral-8x7b": Hand(46_702_792_704, 12_879_925_248, 131_072, {None: 32}),
    # E 5376, F 21504, H 32, K 16, D 128, V 262208, L 62, tied, four norms; each sixth layer sees all: 10 of 62
    # layer: q 22,020,096 + kv 2*11,010,048 + o 22,020,096 + mlp 346,816,512 + 21,504 + 256 = 412,898,560
    # 62 layers 25,599,710,720 + 1,409,630,208 + 5,376 = 27,009,346,304; KV 2*16*128*62*2 = 507,904
    "gemma-3-27b": Hand(27_009_346_304, 27_009_346_304, 507_904, {1024: 52, None: 10}),
    # E 7168, H 128, q rank 1536, kv rank 512, nope 128, rope 64, v 128, V 129280, L 61, of them 3 dense of F 18432
    # attention: 7168*1536 + 1536*128*192 + 7168*576 + 512*128*256 + 128*128*7168
    #   = 11,010,048 + 37,748,736 + 4,128,768 + 16,777,216 + 117,440,512 = 187,105,280
    # norms 1536 + 512 + 2*7168 = 16,384
    # dense layer 187,105,280 + 396,361,728 + 16,384 = 583,483,392
    # expert 3*7168*2048 = 44,040,192; routed layer: 187,105,280 + 257 of them 11,318,329,344 + router 1,835,008
    #   + its correction 256 + 16,384 = 11,507,286,272
    # 3*583,483,392 + 58*11,507,286,272 = 669,173,053,952; + 2*926,679,040 + 7,168 = 671,026,419,200
    # idle 248*44,040,192*58 = 633,474,121,728; active 37,552,297,472; KV (512 + 64)*61*2 = 70,272
    "deepseek-v3": Hand(671_026_419_200, 37_552_297_472, 70_272, {None: 61}),
    # E 2880, 128 experts of which 4, F 2880, H 64, K 8, D 64, V 201088, L 36, windows of 128 on each other layer
    # attention: q 11,796,480 + kv 2*1,474,560 + o 11,796,480 = 26,542,080; biases 4096 + 1024 + 2880; sinks 64
    # expert 24,883,200, its biases 2*2880 + 2880 = 8,640; router 368,640 + 128; norms 5,760
    # layer: 26,542,080 + 8,064 + 128*24,891,840 (3,186,155,520) + 368,768 + 5,760 = 3,213,080,192
    # 36 layers 115,670,886,912 + 2*579,133,440 + 2,880 = 116,829,156,672
    # idle (weights, biases left out) 124*24,883,200*36 = 111,078,604,800; active 5,750,551,872; KV 2*8*64*36*2 = 73,728
    "gpt-oss-120b": Hand(116_829_156_672, 5_750_551_872, 73_728, {128: 18, None: 18}),
    # E 5120, F 32768, H 32, K 8, D 128 (H*D 4096 is less than E), V 131072, L 40
    # layer: q 20,971,520 + kv 2*5,242,880 + o 20,971,520 + mlp 503,316,480 + 10,240 = 555,755,520
    # 40 layers 22,230,220,800 + 2*671,088,640 + 5,120 = 23,572,403,200; KV 2*8*128*40*2 = 163,840
    "mistral-small-24b": Hand(23_572_403_200, 23_572_403_200, 163_840, {None: 40}),
    # E 5120, F 17920, H 40, K 10, D 128, V 100352, L 40
    # layer: q 26,214,400 + kv 2*6,553,600 + o 26,214,400 + mlp 275,251,200 + 10,240 = 340,797,440
    # 40 layers 13,631,897,600 + 2*513,802,240 + 5,120 = 14,659,507,200; KV 2*10*128*40*2 = 204,800
    "phi-4": Hand(14_659_507_200, 14_659_507_200, 204_800, {None: 40}),
    # E 4096, F 14336, H 32, K 8, D 128, V 32000, L 32, a window of 4096 on every layer
    # 6,979,584,000 + 2*131,072,000 + 4,096 = 7,241,732,096
    "mistral-7b-v0.1": Hand(7_241_732_096, 7_241_732_096, 131_072, {4096: 32}),
}


@pytest.mark.parametrize("name", HAND)
def test_counted_as_by_hand(name: str):
    made, hand = dissect(name, KNOWN[name]), HAND[name]
    assert made.parameters == hand.parameters
    assert made.active == hand.active
    assert made.kv_per_token * 2 == hand.kv_bytes
    windows = [layer.attention.window for layer in made.layers]
    assert {w: windows.count(w) for w in windows} == hand.windows
    assert made.notes == ()


def test_recurrent_layers_keep_a_state_and_no_cache():
    """Qwen3-Next: 36 layers with the gated delta rule, 12 that attend.

    E 2048, V 151936; 16 key heads of 128, 32 value heads of 128, kernel 4; 512 experts of F 512, of them 10, one
    shared of 512 with a gate of E; H 16, K 2, D 256 where a layer attends, queries twice as wide for the gate.
    q, k, v: 2*2048 + 4096 = 8192; z 4096; b and a 64. Recurrent: 2048*(8192 + 4096 + 64) + 4096*2048 = 33,685,504,
    and convolution 8192*4 + 64 + norm 128 = 32,960. Attending: 2048*(8192 + 1024) + 4096*2048 = 27,262,976, and 512
    of norms. Experts 512*3,145,728 + shared 3,145,728 + router 1,048,576 + gate 2,048 + norms 4,096
    = 1,614,813,184. 36*(33,685,504 + 32,960 + 1,614,813,184) + 12*(27,262,976 + 512 + 1,614,813,184)
    = 59,347,139,328 + 19,704,920,064 = 79,052,059,392; + 2*311,164,928 + 2,048 = 79,674,391,296.
    """
    made = dissect("x", KNOWN["qwen3-next-80b-a3b"])
    assert made.parameters == 79_674_391_296
    assert made.kv_per_token == 2 * 2 * 256 * 12
    states = [layer.attention.state for layer in made.layers]
    matrix, convolution = 4 * 32 * 128 * 128, 2 * 8192 * 3
    assert sum(states) == 36 * (matrix + convolution)
    assert [layer.attention.kv > 0 for layer in made.layers[:4]] == [False, False, False, True]


def test_a_sliding_layer_may_be_said_by_its_type_or_by_the_rule():
    config = KNOWN["gemma-3-27b"]
    types = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(62)]
    assert dissect("x", config).windows == dissect("x", config | {"layer_types": types}).windows


def test_qwen_slides_from_a_layer_on():
    more = {"sliding_window": 512, "use_sliding_window": True, "max_window_layers": 20}
    config = KNOWN["qwen2.5-7b"] | more
    assert dissect("x", config).windows == [None] * 20 + [512] * 8
    assert dissect("x", config | {"use_sliding_window": False}).windows == [None] * 28


def test_qwen2_has_biases():
    """7,615,616,512: E 3584, F 18944, H 28, K 4, D 128, V 152064, L 28, biases of q, k and v.

    Layer: q 12,845,056 + kv 2*1,835,008 + o 12,845,056 + mlp 203,685,888 + norms 7,168 + biases 4,608 = 233,057,792;
    28 of them 6,525,618,176 + 2*544,997,376 + 3,584.
    """
    assert dissect("x", KNOWN["qwen2.5-7b"]).parameters == 7_615_616_512


def test_a_model_of_more_than_text_is_its_decoder():
    whole = {"model_type": "gemma3", "text_config": KNOWN["gemma-3-27b"], "vision_config": {}}
    made = dissect("x", whole)
    assert made.parameters == HAND["gemma-3-27b"].parameters
    assert "only its decoder" in made.notes[0]


def test_a_type_nobody_knows_is_counted_by_its_sizes_and_said():
    made = dissect("x", KNOWN["llama-3.1-8b"] | {"model_type": "zebra"})
    assert made.parameters == HAND["llama-3.1-8b"].parameters
    assert "zebra" in made.notes[0]


def compressed(kind: str) -> dict[str, Any]:
    group = {"weights": {"num_bits": 8, "type": kind}, "input_activations": {"num_bits": 8}}
    return {"quant_method": "compressed-tensors", "config_groups": {"g": group}}


@pytest.mark.parametrize(
    ("said", "scheme"),
    [
        (None, None),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "w4a16"),
        ({"quant_method": "awq", "bits": 8}, "w8a16"),
        (compressed("float"), "fp8"),
        (compressed("int"), "int8"),
    ],
)
def test_what_a_checkpoint_is_quantized_to(said: Any, scheme: str | None):
    assert dissect("x", KNOWN["llama-3.1-8b"] | {"quantization_config": said}).quantized == scheme


# -- what cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [*NEEDED, "intermediate_size"])
def test_a_missing_key_is_named(key: str):
    config = {name: value for name, value in KNOWN["llama-3.1-8b"].items() if name != key}
    with pytest.raises(BadCheckpoint, match=key):
        dissect("x", config)


def test_all_missing_keys_are_named_at_once():
    with pytest.raises(BadCheckpoint, match=r"hidden_size.*num_attention_heads.*intermediate_size"):
        dissect("x", {"model_type": "llama", "vocab_size": 10})


@pytest.mark.parametrize(
    "absurd",
    [
        {"hidden_size": -1},
        {"hidden_size": "big"},
        {"num_hidden_layers": 10**9},
        {"num_key_value_heads": 7},
        {"layer_types": ["full_attention"]},
        {"layer_types": ["sideways"] * 32},
        {"quantization_config": "fp8"},
        {"num_local_experts": 4, "num_experts_per_tok": 9},
        {"num_local_experts": 4},
        {"kv_lora_rank": 512},
    ],
)
def test_what_makes_no_sense_is_refused(absurd: dict[str, Any]):
    with pytest.raises(BadCheckpoint):
        dissect("x", KNOWN["llama-3.1-8b"] | absurd)


JUNK: tuple[Any, ...] = (None, -1, 0, 1.5, "x", [], {}, [3], {"a": 1}, True, 10**12, float("nan"))


@pytest.mark.parametrize(
    "name", ["gemma-3-27b", "qwen3-next-80b-a3b", "deepseek-v3", "gpt-oss-120b", "qwen3-30b-a3b"]
)
def test_whatever_a_key_holds_it_is_counted_or_refused(name: str):
    more = {"mlp_only_layers": [], "layer_types": None, "use_sliding_window": True, "max_window_layers": 3}
    config = KNOWN[name] | more | {"text_config": None, "dtype": "bfloat16", "attention_bias": False}
    for key in config:
        for junk in JUNK:
            with suppress(Refused):
                assert dissect("x", config | {key: junk}).parameters > 0


def test_strangers_are_refused():
    with pytest.raises(Refused, match="encoder-decoder"):
        dissect("x", {"is_encoder_decoder": True})
    with pytest.raises(Refused, match="zip9"):
        dissect("x", KNOWN["llama-3.1-8b"] | {"quantization_config": {"quant_method": "zip9"}})
