"""8-bit products on a CPU: what they say, and that a token has no company."""

import threading
import warnings

import pytest
import torch

from headrace.kernels import int8
from headrace.kernels.int8 import Int8Weight
from headrace.quant.schemes.int8 import SCHEMES

pytestmark = pytest.mark.skipif(int8.missing() is not None, reason="no 8-bit products on this processor")

SCHEME = SCHEMES["int8"]
SIZES = [(1, 1), (5, 7), (100, 33), (48, 192), (576, 96)]
TOKENS = [1, 2, 3, 16, 17, 64]


def made(inputs: int, outputs: int) -> tuple[Int8Weight, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(inputs)
    packed = SCHEME.pack(torch.randn(outputs, inputs, generator=generator))
    return Int8Weight(packed["weight"], packed["scale"].flatten()), packed


def inputs_of(tokens: int, size: int) -> torch.Tensor:
    """Of every magnitude, to one side or both."""
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, size, generator=generator) + torch.arange(tokens)[:, None] % 3
    return x * torch.logspace(-6, 4, tokens)[:, None]


def difference(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Per token, as a part of its length."""
    return (found - expected).norm(dim=1) / expected.norm(dim=1)


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_unpacking_gives_the_scheme_s_weight(inputs: int, outputs: int):
    weight, packed = made(inputs, outputs)
    torch.testing.assert_close(weight.unpack(), SCHEME.unpack(packed), rtol=1e-6, atol=0)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_products_are_the_scheme_s(inputs: int, outputs: int, tokens: int):
    """Up to a number that lies between two steps and is rounded to the other one."""
    weight, packed = made(inputs, outputs)
    x = inputs_of(tokens, inputs)
    assert difference(weight.product(x), SCHEME.apply(packed, x)).max() < 0.01
    assert difference(weight.product(x), SCHEME.apply(packed, x)).median() < 1e-5


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_the_error_of_inputs_is_bounded(inputs: int, outputs: int, tokens: int):
    """Each is off by half a step at most."""
    weight, _ = made(inputs, outputs)
    x = inputs_of(tokens, inputs)
    exact = weight.unpack()
    step = (x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)) / weight.levels
    off = (weight.product(x) - x @ exact.T).abs()
    steps = 2 * 0.51  # of a zero point that is a whole number, too: one more half
    bound = steps * step[:, None] * exact.abs().sum(1) + 1e-5 * (x.abs() @ exact.abs().T)
    assert bool((off <= bound).all())


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_a_token_is_itself_in_any_company(inputs: int, outputs: int):
    weight, _ = made(inputs, outputs)
    x = inputs_of(64, inputs)
    together = weight.product(x, fixed=True)
    for n in (0, 1, 15, 16, 63):
        assert torch.equal(weight.product(x[n : n + 1], fixed=True)[0], together[n])
        assert torch.equal(weight.product(x[n // 2 : n + 1], fixed=True)[-1], together[n])
    assert difference(weight.product(x), together).max() < 1e-5


@pytest.mark.parametrize("size", [96, 576])
def test_one_token_by_the_short_way(size: int):
    """Where the library rounds by itself, it rounds to the same steps."""
    weight, _ = made(size, 48)
    x = inputs_of(64, size)
    alone = torch.cat([weight.product(row[None]) for row in x])
    apart = difference(alone, weight.product(x))
    assert apart.max() < 0.005
    assert apart.median() < 1e-5


def test_nothing_and_zeros():
    weight, _ = made(48, 192)
    assert weight.product(torch.empty(0, 48)).shape == (0, 192)
    assert not weight.product(torch.zeros(3, 48)).any()
    assert not weight.product(torch.zeros(1, 48)).any()


def test_threads_that_pack_leave_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch):
    """Two at once, the first of which ends while the other has yet to pack: that one packs by the same engine."""
    before, filters, seen = torch.backends.quantized.engine, list(warnings.filters), list[str]()
    inside, done = threading.Barrier(2), threading.Event()
    make = torch._make_per_channel_quantized_tensor

    def slow(*args: object) -> object:
        inside.wait(120)
        if threading.current_thread() is not first:
            done.wait(120)
        seen.append(torch.backends.quantized.engine)
        return make(*args)

    monkeypatch.setattr(torch, "_make_per_channel_quantized_tensor", slow)
    first, second = (threading.Thread(target=made, args=(48, 96)) for _ in range(2))
    first.start()
    second.start()
    first.join(120)
    done.set()
    second.join(120)
    assert seen == [int8.ENGINE] * 2
    assert (torch.backends.quantized.engine, warnings.filters) == (before, filters)
