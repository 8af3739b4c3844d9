"""QK-norm, RoPE and the KV store: the definitions, and that the one launch equals all three."""

import pytest
import torch

from headrace.kernels.rotate import (
    Turns,
    apply_rope,
    rotate_store,
    rotate_store_few,
    rotate_store_ref,
    store_kv,
)
from tests.kernels.closeness import assert_close

CASES = [  # tokens, heads, kv heads, head size, rotary size
    (1, 4, 2, 16, 16),
    (5, 3, 1, 10, 6),
    (19, 16, 2, 8, 8),
    (18, 9, 3, 12, None),
]


def table_of(positions: int, rotary: int) -> torch.Tensor:
    angle = torch.arange(positions)[:, None] / 100 ** (torch.arange(rotary // 2) / (rotary // 2))
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def step(tokens: int, heads: int, kv_heads: int, size: int, rotary: int | None, dtype: torch.dtype) -> dict:
    """Arguments of rotate_store, on the CPU: q, k, v are views of one fused projection."""
    fused = torch.randn(tokens, (heads + 2 * kv_heads) * size).to(dtype).view(tokens, -1, size)
    return {
        "q_THD": fused[:, :heads],
        "k_TKD": fused[:, heads : heads + kv_heads],
        "v_TKD": fused[:, heads + kv_heads :],
        "positions_T": torch.randint(0, 50, (tokens,)),
        "table_PR": None if rotary is None else table_of(50, rotary),
        "q_weight_D": None,
        "k_weight_D": None,
        "eps": 1e-6,
        "offset": 0.0,
        "k_cache": torch.zeros(8, 4, kv_heads, size, dtype=dtype),
        "v_cache": torch.zeros(8, 4, kv_heads, size, dtype=dtype),
        "slots_T": torch.randperm(28)[:tokens] + 4,
    }


def moved(arguments: dict, device: torch.device) -> dict:
    """A copy on the device; q, k and v stay views of one tensor."""
    q, k, v = (arguments[n] for n in ("q_THD", "k_TKD", "v_TKD"))
    fused = torch.cat([q, k, v], dim=1).to(device)
    out = {n: x.clone().to(device) if isinstance(x, torch.Tensor) else x for n, x in arguments.items()}
    h, kv = q.shape[1], k.shape[1]
    return out | {"q_THD": fused[:, :h], "k_TKD": fused[:, h : h + kv], "v_TKD": fused[:, h + kv :]}


def test_rope_turns_pairs_and_keeps_the_rest():
    x = torch.randn(2, 1, 6)
    table = table_of(10, 4)
    out = apply_rope(x, torch.tensor([0, 7]), table)
    assert torch.equal(out[0], x[0])
    angle = torch.tensor(7.0)
    assert_close(out[1, 0, 0], x[1, 0, 0] * angle.cos() - x[1, 0, 2] * angle.sin())
    assert_close(out[1, 0, 2], x[1, 0, 2] * angle.cos() + x[1, 0, 0] * angle.sin())
    assert torch.equal(out[..., 4:], x[..., 4:])


def test_store_writes_only_its_slots():
    k_cache, v_cache = torch.zeros(3, 2, 1, 4), torch.zeros(3, 2, 1, 4)
    store_kv(torch.ones(2, 1, 4), 2 * torch.ones(2, 1, 4), k_cache, v_cache, torch.tensor([5, 2]))
    assert k_cache.view(6, 4).sum(1).tolist() == [0, 0, 4, 0, 0, 4]
    assert v_cache.view(6, 4).sum(1).tolist() == [0, 0, 8, 0, 0, 8]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [False, True])
def test_kernel_equals_definition(device, case, dtype, norm):
    from headrace.kernels.gpu.rotate import rotate_store as kernel

    wanted = step(*case, dtype)
    if norm:
        q_weight, k_weight = torch.randn(2, case[3]).to(dtype)
        wanted |= {"q_weight_D": q_weight, "k_weight_D": k_weight, "offset": 1.0}
    got = moved(wanted, device)
    q_wanted = rotate_store_ref(**wanted)
    q = kernel(*got.values())
    assert q.is_contiguous()
    assert_close(q.cpu(), q_wanted)
    assert_close(got["k_cache"].cpu(), wanted["k_cache"])
    assert torch.equal(got["v_cache"].cpu(), wanted["v_cache"])
    untouched = torch.ones(32, dtype=torch.bool)
    untouched[wanted["slots_T"]] = False
    assert not got["k_cache"].cpu().flatten(0, 1)[untouched].any()


def test_one_sided_norm_weights_are_ignored_as_the_definition_does():
    arguments = step(*CASES[0], torch.float32)
    plain = rotate_store(**arguments)
    assert torch.equal(plain, rotate_store(**(arguments | {"q_weight_D": torch.randn(16)})))


def test_kernel_follows_the_strides_of_an_interleaved_cache(device):
    from headrace.kernels.gpu.rotate import rotate_store as kernel

    wanted = step(5, 4, 2, 8, 8, torch.float32)
    got = moved(wanted, device)
    both = torch.zeros(8, 2, 4, 2, 8, device=device)
    kernel(*(got | {"k_cache": both[:, 0], "v_cache": both[:, 1]}).values())
    rotate_store_ref(**wanted)
    assert_close(both[:, 0].cpu(), wanted["k_cache"])
    assert torch.equal(both[:, 1].cpu(), wanted["v_cache"])


FP8 = torch.float8_e4m3fn


def test_eight_bits_keep_what_they_can_of_a_scaled_value():
    x = torch.tensor([1.0, -3.1, 1000.0, -1000.0, 0.3]).view(1, 1, 5)
    k_cache, v_cache = torch.zeros(2, 1, 1, 5).to(FP8), torch.zeros(2, 1, 1, 5).to(FP8)
    store_kv(x, x, k_cache, v_cache, torch.tensor([1]), k_scale=0.5, v_scale=4.0)
    assert k_cache[1].flatten().tolist() == [2.0, -6.0, 448.0, -448.0, 0.625]
    assert v_cache[1].flatten().tolist() == [0.25, -0.75, 256.0, -256.0, 0.078125]
    assert not k_cache[0].float().any()


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[3]])
def test_kernel_equals_definition_with_eight_bits(device, case):
    if device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs compute capability 8.9")
    from headrace.kernels.gpu.rotate import rotate_store as kernel

    wanted = step(*case, torch.float16)
    wanted["v_TKD"].mul_(300)  # beyond what 8 bits can say
    for name in ("k_cache", "v_cache"):
        wanted[name] = wanted[name].to(FP8)
    got = moved(wanted, device)
    rotate_store_ref(**wanted, k_scale=0.5, v_scale=0.75)
    kernel(*got.values(), k_scale=0.5, v_scale=0.75)
    for name in ("k_cache", "v_cache"):
        a, b = got[name].cpu().float(), wanted[name].float()
        assert a.isfinite().all()
        # A value between two may go either way; the interpreter loses a carry now and then: 1.97 becomes 1.
        assert ((a - b).abs() > 0.13 * b.abs()).float().mean() <= (0 if device.type == "cuda" else 0.03)
        assert_close(a, b, 0.03 if device.type == "cuda" else 0.2)
    assert wanted["v_cache"].float().abs().max() == 448


@pytest.mark.parametrize("norm", [False, True])
def test_fixed_tokens_stand_alone(device, norm):
    """Of many tokens a program takes several heads, and other warps share their norm."""
    from headrace.kernels.gpu.rotate import rotate_store as kernel

    arguments = step(40, 16, 2, 64, 64, torch.float16) | {"k_cache": torch.zeros(20, 4, 2, 64).half()}
    arguments |= {"v_cache": torch.zeros(20, 4, 2, 64).half(), "slots_T": torch.arange(40)}
    if norm:
        arguments |= {"q_weight_D": torch.randn(64).half(), "k_weight_D": torch.randn(64).half()}
    got = moved(arguments, device)
    together = kernel(*got.values(), fixed=True)
    for tokens in (1, 3, 17):
        some = {n: x[:tokens] if n in PER_TOKEN else x for n, x in moved(arguments, device).items()}
        assert torch.equal(kernel(*some.values(), fixed=True), together[:tokens])
        assert torch.equal(some["k_cache"].flatten(0, 1)[:tokens], got["k_cache"].flatten(0, 1)[:tokens])


PER_TOKEN = ("q_THD", "k_TKD", "v_TKD", "positions_T", "slots_T")


@pytest.mark.parametrize("tokens", [1, 2, 19])
def test_few_calls_do_the_same(tokens: int):
    few, usual = (step(tokens, 9, 3, 8, 8, torch.float32) for _ in "ab")
    usual |= {name: few[name] for name in ("q_THD", "k_TKD", "v_TKD", "positions_T", "slots_T")}
    q, k, v, positions, table = (few[n] for n in ("q_THD", "k_TKD", "v_TKD", "positions_T", "table_PR"))
    turns = Turns.of(positions, table)
    found = rotate_store_few(q, k, v, turns, few["k_cache"], few["v_cache"], few["slots_T"])
    assert found is not None
    torch.testing.assert_close(found, rotate_store_ref(**usual))
    for name in ("k_cache", "v_cache"):
        torch.testing.assert_close(few[name], usual[name])


def test_few_calls_need_their_layout():
    given = step(5, 4, 2, 8, 8, torch.float32)
    q, k, v, table = (given[n] for n in ("q_THD", "k_TKD", "v_TKD", "table_PR"))
    rest = (Turns.of(given["positions_T"], table), given["k_cache"], given["v_cache"], given["slots_T"])
    assert rotate_store_few(q, k.clone(), v, *rest) is None
    assert rotate_store_few(q.bfloat16(), k.bfloat16(), v, *rest) is None
    partly = Turns.of(given["positions_T"], table_of(50, 6))
    assert rotate_store_few(q, k, v, partly, *rest[1:]) is None
    assert not given["k_cache"].any()
