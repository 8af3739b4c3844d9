"""Drawing tokens: the right sets, the right odds, the same draw everywhere, and kernels that equal the definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels import sample
from headrace.kernels.noise import below, gumbel, mix, random_bits, row_keys
from headrace.kernels.sample import ANYTHING, Draws, Settings, draw, draw_ref

INF = float("inf")


def choose(rows, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seeds=None, positions=None):
    """Settings for `rows` rows; a number stands for a column of it."""

    def column(x, dtype):
        return torch.as_tensor(x).to(dtype).expand(rows).clone()

    t = column(temperature, torch.float32)
    return Settings(
        torch.where(t > 0, 1 / t, 0.0),
        torch.log(1 / column(min_p, torch.float32)),
        column(top_k, torch.int64),
        column(top_p, torch.float32),
        torch.arange(rows) if seeds is None else column(seeds, torch.int64),
        torch.zeros(rows, dtype=torch.int64) if positions is None else column(positions, torch.int64),
    )


def allowed(z, top_k=0, top_p=1.0, min_p=0.0):
    """Plainly, for one row in float64: which tokens may be drawn."""
    order = sorted(range(len(z)), key=lambda i: -z[i])
    best = z[order[0]]
    kept = [i for i in order if z[i] > -INF and (not min_p or best - z[i] <= math.log(1 / min_p))]
    if 0 < top_k < len(kept):
        kept = [i for i in kept if z[i] >= z[kept[top_k - 1]]]
    if top_p < 1:
        total = sum(math.exp(z[i] - best) for i in kept)
        kept = [i for i in kept if sum(math.exp(z[j] - best) for j in kept if z[j] > z[i]) < top_p * total]
    return set(kept)


def noise_of(vocab, s):
    return gumbel(random_bits(np.arange(vocab, dtype=np.uint32), row_keys(s.seeds, s.positions)))


def reference(logits_SV, s):
    """Row by row: the best of the allowed tokens, noise added."""
    noise = noise_of(logits_SV.shape[1], s)
    tokens = []
    for row, scale in enumerate(s.scale):
        if scale == 0:
            tokens.append(int(logits_SV[row].argmax()))
            continue
        z = logits_SV[row] * scale
        kept = allowed(z.tolist(), int(s.top_k[row]), float(s.top_p[row]), math.exp(-float(s.reach[row])))
        tokens.append(max(sorted(kept), key=lambda i, row=row, z=z: float(noise[row, i] + z[i])))
    return tokens


CUTS = [
    {},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"top_k": 8, "top_p": 0.8},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.02},
    {"top_k": 3, "temperature": 2.0},
    {"top_p": 0.3, "temperature": 0.6},
    {"top_k": 10**12},
    {"top_p": 1e-6},
]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("tied", [False, True])
def test_definition_equals_a_plain_reference(cut, tied):
    generator = torch.Generator().manual_seed(len(str(cut)))
    logits = torch.randn(24, 200, generator=generator) * 3
    if tied:
        logits = logits.round()
    logits[:, 17] = -INF
    s = choose(24, **cut)
    assert draw(logits, s).tolist() == reference(logits, s)


def test_how_far_is_looked_first_does_not_matter(monkeypatch):
    logits = torch.randn(12, 300, generator=torch.Generator().manual_seed(1)) * 2
    logits[::2] = logits[::2].round()  # equals on both sides of any cut
    s = choose(12, top_p=torch.linspace(0.05, 0.999, 12), top_k=torch.tensor([0, 3, 20] * 4))
    wanted = reference(logits, s)
    for fars in ((), (0.0,), (1.0, 2.0), (7.0,)):
        monkeypatch.setattr(sample, "FARS", fars)
        assert draw(logits, s).tolist() == wanted


def test_equals_of_the_kth_token_count_in_the_mass_of_top_p():
    logits = torch.full((8, 5000), -9.0)
    logits[:, 1000:1400] = 0.0
    logits[:, 20:50] = torch.linspace(0.5, 3, 30)
    s = choose(8, top_k=40, top_p=0.8)
    assert draw(logits, s).tolist() == reference(logits, s)


TEMPERATURES = st.sampled_from([0.01, 0.3, 0.8, 1.0, 1.5, 2.0, 50.0])


@settings(max_examples=150)
@given(data=st.data())
def test_quick_draws_equal_the_definition(data):
    rows, vocab = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([1, 7, 1000, 3000, 70_000]))

    def column(values):
        return torch.tensor(data.draw(st.lists(values, min_size=rows, max_size=rows)))

    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    logits = (
        torch.randn(rows, vocab, generator=generator)
        * column(st.sampled_from([0.0, 1e-7, 0.1, 3.0, 12.0]))[:, None]
    )
    logits += column(st.sampled_from([0.0, -40.0, 3e4, 1e8]))[:, None]
    if data.draw(st.booleans()):
        logits = logits.round()
    hidden = data.draw(st.sampled_from([0.0, 0.5, 0.999, 1.0]))
    logits[torch.rand(rows, vocab, generator=generator) < hidden] = -INF
    s = choose(
        rows,
        temperature=column(TEMPERATURES),
        min_p=column(st.sampled_from([0.0, 0.0, 1e-6, 0.1, 1.0])),
        top_k=column(st.sampled_from([0, 0, 1, 40, 999, 10**6])),
        top_p=column(st.sampled_from([1.0, 1.0, 1e-6, 0.5, 0.95, 0.9999])),
        seeds=column(st.integers(-(2**63), 2**63 - 1)),
        positions=column(st.integers(0, 2**20)),
    )
    assert torch.equal(draw(logits, s), draw_ref(logits, s))
    free = choose(rows, 1.0, seeds=s.seeds)._replace(scale=s.scale, reach=s.reach)
    z = logits * s.scale[:, None]
    score = (noise_of(vocab, free) + z).where(z.amax(-1, keepdim=True) - z <= s.reach[:, None], -INF)
    assert draw(logits, free).tolist() == [int((row == row.max()).nonzero()[0]) for row in score]


def test_rows_that_are_not_numbers_draw_as_defined():
    logits = torch.zeros(6, 500)
    logits[0], logits[1, 7], logits[2, 300:305], logits[3] = -INF, math.nan, INF, 3e38
    logits[4, 1:] = -INF
    for cut in ({}, {"min_p": 0.1}, {"top_k": 3}, {"top_p": 0.9}):
        s = choose(6, temperature=0.01, **cut)
        assert torch.equal(draw(logits, s), draw_ref(logits, s))


def test_other_patterns_of_bits_are_quieter():
    bits = torch.cat(
        (torch.arange(sample.QUIET, 2 * sample.QUIET), torch.randint(sample.QUIET, 2**31, (2**20,)))
    )
    assert float(gumbel(bits.int()).max()) < sample.LOUD + sample.SLACK / 2
    assert float(gumbel(torch.tensor([sample.QUIET * 99 // 100]))) > sample.LOUD


def test_bits_below_a_limit_are_found_early():
    ids, keys = np.arange(1 << 18, dtype=np.uint32), row_keys(torch.tensor([3, 4]), torch.tensor([1, 2]))
    for limit in (1 << 17, sample.QUIET, 1 << 30):
        assert np.array_equal(below(limit, ids, keys), random_bits(ids, keys).numpy() < limit)


def test_seeds_keep_their_tokens():
    """What somebody drew with a seed before is drawn again by later versions."""
    logits = torch.arange(3000.0).remainder(7).expand(8, -1)
    s = choose(8, seeds=torch.tensor([0, 1, -1, 2**40, -(2**63), 2**63 - 1, 5, 5]), positions=torch.arange(8))
    assert draw(logits, s).tolist() == [965, 2274, 1930, 775, 1545, 1861, 608, 286]


def test_tiles_do_not_matter(monkeypatch):
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(1))
    s = choose(3, min_p=torch.tensor([0.0, 0.1, 0.5]))
    wanted = draw(logits, s)
    monkeypatch.setattr(sample, "TILE", 100)
    assert torch.equal(draw(logits, s), wanted)
    assert torch.equal(draw_ref(logits, s), wanted)


@pytest.mark.parametrize("cut", CUTS[:8])
def test_odds_are_those_of_softmax(cut):
    draws = 20000
    logits = torch.randn(40, generator=torch.Generator().manual_seed(3)) * 1.5
    s = choose(draws, **cut, seeds=torch.arange(draws) // 100, positions=torch.arange(draws) % 100)
    found = torch.bincount(draw(logits.expand(draws, -1), s), minlength=40).double()
    z = (logits * s.scale[0]).tolist()
    kept = sorted(allowed(z, cut.get("top_k", 0), cut.get("top_p", 1.0), cut.get("min_p", 0.0)))
    assert found.sum() == found[kept].sum()
    odds = torch.softmax(torch.tensor(z, dtype=torch.float64)[kept], 0)
    rare = odds * draws < 8  # lumped together, for the approximation to hold
    wanted = torch.cat((odds[~rare], odds[rare].sum()[None])) * draws
    got = torch.cat((found[kept][~rare], found[kept][rare].sum()[None]))
    used = wanted > 0
    statistic = float(((got - wanted)[used] ** 2 / wanted[used]).sum())
    freedom = max(1, int(used.sum()) - 1)
    assert statistic < freedom + 4.5 * math.sqrt(
        2 * freedom
    )  # one run in 100,000 would fail; seeds are fixed


@pytest.mark.parametrize("along", ["ids", "positions", "seeds", "high seeds"])
def test_bits_look_random_along_every_axis(along):
    n = 1 << 16
    line = torch.arange(n)
    seeds = {"seeds": line, "high seeds": line << 32}.get(along, torch.full((n,), 7))
    positions = line if along == "positions" else torch.zeros(n, dtype=torch.int64)
    ids = line.numpy() if along == "ids" else np.array([12])
    keys = row_keys(seeds, positions) if along != "ids" else row_keys(seeds[:1], positions[:1])
    bits = random_bits(ids.astype(np.uint32), keys).flatten()
    for shift in (0, 11, 23):
        counts = torch.bincount((bits.long() >> shift) & 0xFF, minlength=256).double()
        statistic = float(((counts - n / 256) ** 2 / (n / 256)).sum())
        assert abs(statistic - 255) < 5 * math.sqrt(2 * 255)
    x = bits.double() / 2**31 - 0.5
    assert abs(float((x[1:] * x[:-1]).mean() * 12)) < 5 / math.sqrt(n)  # neighbours do not move together


def test_noise_is_gumbel_and_finite_at_the_ends():
    noise = noise_of(1 << 16, choose(1, seeds=3, positions=4)).double()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.03)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.06)
    high, low = gumbel(torch.tensor([0, 2**31 - 1])).tolist()
    assert high == pytest.approx(32 * math.log(2), abs=1e-3)
    assert low == pytest.approx(-math.log(24 * math.log(2)), abs=1e-3)
    assert high - low < 32  # what the kernels' FAR relies on


@settings(max_examples=40)
@given(data=st.data())
def test_a_row_draws_the_same_whatever_shares_its_batch(data):
    rows = data.draw(st.integers(2, 9))
    number = st.integers(0, 2**31)
    generator = torch.Generator().manual_seed(data.draw(number))
    logits = torch.randn(rows, 150, generator=generator) * 2
    s = choose(
        rows,
        temperature=torch.tensor(
            data.draw(st.lists(st.sampled_from([0, 0.5, 1.5]), min_size=rows, max_size=rows))
        ),
        top_k=torch.tensor(
            data.draw(st.lists(st.sampled_from([0, 1, 7, 149]), min_size=rows, max_size=rows))
        ),
        top_p=torch.tensor(
            data.draw(st.lists(st.sampled_from([1.0, 0.5, 0.95]), min_size=rows, max_size=rows))
        ),
        min_p=torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 0.1]), min_size=rows, max_size=rows))),
        seeds=torch.tensor(
            data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=rows, max_size=rows))
        ),
    )
    together = draw(logits, s)
    order = torch.tensor(data.draw(st.permutations(range(rows)))[: data.draw(st.integers(1, rows))])
    assert torch.equal(draw(logits[order], s.rows(order)), together[order])


def test_seed_and_position_matter():
    logits = torch.zeros(1, 5000)
    draws = [
        int(draw(logits, choose(1, seeds=seed, positions=at)))
        for seed, at in ((0, 0), (1, 0), (0, 1), (1 << 32, 0), (-1, 0), (0, 1 << 20))
    ]
    assert len(set(draws)) == len(draws)


def test_a_row_with_nothing_left_still_gives_a_token():
    logits = torch.full((3, 50), -INF)
    s = choose(3, temperature=torch.tensor([0, 1.0, 1.0]), top_k=torch.tensor([0, 0, 5]))
    assert all(0 <= token < 50 for token in draw(logits, s).tolist())


@pytest.mark.parametrize(
    ("cut", "draws"),
    [
        ({"temperature": 0.0, "top_k": 4}, Draws(True, False, False)),
        ({}, Draws(False, False, False)),
        ({"top_k": 4}, Draws(False, True, False)),
        ({"top_p": 0.5}, Draws(False, True, False)),
        ({"min_p": 0.5}, Draws(False, False, True)),
    ],
)
def test_draws(cut, draws):
    s = choose(2, **cut)
    assert Draws.of(*(x.numpy() for x in (s.scale, s.reach, s.top_k, s.top_p))) == draws
    mixed = choose(2, temperature=torch.tensor([0.0, 1.0]), top_p=torch.tensor([0.5, 1.0]))
    assert not Draws.of(*(x.numpy() for x in (mixed.scale, mixed.reach, mixed.top_k, mixed.top_p))).cuts


# -- kernels


def on(device, s):
    return Settings(*(column.to(device) for column in s))


ROWS = 7
SHAPES = {
    "peaked": lambda g: torch.randn(ROWS, 517, generator=g) * 6,
    "flat": lambda g: torch.randn(ROWS, 300, generator=g) * 0.1,
    "tied": lambda g: (torch.randn(ROWS, 1000, generator=g) * 4).round() / 2,
    "masked": lambda g: torch.randn(ROWS, 600, generator=g).index_fill(1, torch.arange(3, 600), -INF),
    "small": lambda g: torch.randn(ROWS, 3, generator=g),
    "one": lambda g: torch.randn(ROWS, 1, generator=g),
    "equal": lambda g: torch.zeros(ROWS, 400),
}


FEW = 16
"""Places for candidates so few that the whole row is searched."""


@pytest.mark.parametrize(
    ("shape", "cap"),
    [*((shape, 1024) for shape in SHAPES if shape != "one"), ("peaked", FEW), ("flat", FEW), ("tied", FEW)],
)
def test_kernel_equals_definition_with_cuts(device, shape, cap):
    from headrace.kernels.gpu.sample import draw as kernel

    g = torch.Generator().manual_seed(5)
    logits = SHAPES[shape](g).to(device)
    s = choose(
        ROWS,
        temperature=torch.tensor([0, 0.5, 1, 0.8, 1.3, 1, 1]),
        top_k=torch.tensor([5, 0, 10, 40, 0, 250, 3]),
        top_p=torch.tensor([0.5, 0.9, 1, 0.8, 1, 0.7, 0.999]),
        min_p=torch.tensor([0, 0, 0, 0.05, 0.2, 0.01, 1]),
        seeds=torch.randint(-(2**63), 2**63 - 1, (ROWS,), generator=g),
        positions=torch.randint(0, 1 << 20, (ROWS,), generator=g),
    )
    s = on(device, s)
    assert torch.equal(kernel(logits, s, ANYTHING, cap), draw_ref(logits, s))


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_equals_definition_without_cuts(device, shape):
    from headrace.kernels.gpu.sample import draw as kernel

    logits = SHAPES[shape](torch.Generator().manual_seed(6)).to(device)
    free = on(device, choose(ROWS, temperature=torch.linspace(0, 2, ROWS)))
    assert torch.equal(kernel(logits, free, Draws(False, False, False)), draw_ref(logits, free))
    floored = on(
        device, choose(ROWS, temperature=torch.linspace(0, 2, ROWS), min_p=torch.linspace(0, 1, ROWS))
    )
    assert torch.equal(kernel(logits, floored, Draws(False, False, True)), draw_ref(logits, floored))
    assert torch.equal(kernel(logits, None, Draws(True, False, False)), logits.argmax(-1))
    assert torch.equal(kernel(logits, floored, ANYTHING), draw_ref(logits, floored))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, which interprets kernels, warns of infinities
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("tile", "span"), [(64, 192), (512, 1024)])
def test_race_equals_definition(device, monkeypatch, shape, tile, span):
    from headrace.kernels.gpu import sample as gpu

    monkeypatch.setattr(gpu, "RACE_TILE", tile)
    g = torch.Generator().manual_seed(7)
    logits = SHAPES[shape](g).to(device)
    s = choose(
        ROWS,
        temperature=torch.linspace(0, 2, ROWS),
        seeds=torch.randint(-(2**63), 2**63 - 1, (ROWS,), generator=g),
    )
    s = on(device, s)
    free = Draws(False, False, False)
    assert torch.equal(gpu.draw(logits, s, free, span=span), draw_ref(logits, s))
    assert torch.equal(gpu.draw(logits * 1e4, s, free, span=span), draw_ref(logits * 1e4, s))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_race_ends_on_broken_rows(device):
    from headrace.kernels.gpu.sample import draw as kernel

    logits = torch.zeros(5, 200, device=device)
    logits[0] = math.nan
    logits[1, ::2] = math.nan
    logits[2] = -INF
    logits[3, 5:9] = INF
    logits[4, :190] = -INF  # whole tiles without anything to draw come first
    tokens = kernel(logits, on(device, choose(5)), Draws(False, False, False), span=64).tolist()
    assert all(0 <= token < 200 for token in tokens)
    assert 5 <= tokens[3] < 9
    assert tokens[4] == int(
        draw_ref(logits[4:], on(device, choose(5)).rows(torch.tensor([4], device=device)))[0]
    )


def test_race_shares_the_work():
    from headrace.kernels.gpu.sample import RACE_TILE, race_span

    for rows, vocab, programs in ((256, 151936, 2112), (4, 151936, 2112), (300, 500, 100)):
        span = race_span(rows, vocab, programs)
        assert span % RACE_TILE == 0
        assert span >= min(vocab, 4 * RACE_TILE)
        assert rows * -(-vocab // span) <= max(2 * rows, programs + rows)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, which interprets kernels, warns of NaN
def test_kernel_ends_on_broken_rows(device):
    from headrace.kernels.gpu.sample import draw as kernel

    logits = torch.zeros(4, 100, device=device)
    logits[0] = math.nan
    logits[1, ::2] = math.nan
    logits[2] = -INF
    logits[3, 5] = INF
    for cut in ({"min_p": 0.3}, {"top_k": 90, "top_p": 0.5}):
        tokens = kernel(logits, on(device, choose(4, **cut)), ANYTHING).tolist()
        assert all(0 <= token < 100 for token in tokens)


def test_kernel_takes_rows_with_a_stride(device):
    from headrace.kernels.gpu.sample import draw as kernel

    wide = torch.randn(4, 200, device=device)
    s = on(device, choose(4, top_k=9))
    assert torch.equal(kernel(wide[:, :130], s, ANYTHING), draw_ref(wide[:, :130], s))
    assert kernel(wide[:0], s.rows(torch.arange(0, device=device)), ANYTHING).shape == (0,)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("spread", [0.5, 3.0, 8.0])
def test_kernel_equals_definition_at_full_size(rows, spread):
    g = torch.Generator().manual_seed(rows)
    logits = (torch.randn(rows, 151936, generator=g) * spread).cuda()
    for cut in (*CUTS, {"top_k": 1000, "top_p": 0.9}):
        s = on("cuda", choose(rows, **cut))
        same = draw(logits, s) == draw_ref(logits, s)
        assert same.float().mean() >= 0.98, (
            cut
        )  # a mass or a score within rounding of another may fall either way


@pytest.mark.gpu
@pytest.mark.usefixtures("cache_of_memory")
def test_kernel_can_be_captured():
    logits = torch.randn(4, 5000, device="cuda")
    s = on("cuda", choose(4, top_k=20, top_p=0.9, min_p=0.01))
    draw(logits, s)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = draw(logits, s)
    for at in range(5):
        s.positions.fill_(at)
        logits.copy_(torch.randn(4, 5000))
        graph.replay()
        assert torch.equal(tokens, draw_ref(logits, s))


def test_hash_wraps_like_32_bit_arithmetic():
    x = np.uint64(0x12345678)
    mask = np.uint64(0xFFFFFFFF)
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
        x ^= x >> np.uint64(shift)
        x = (x * np.uint64(factor)) & mask
    x ^= x >> np.uint64(15)
    assert int(mix(np.array([0x12345678], np.uint32))[0]) == int(x)


@pytest.mark.parametrize("vocab", [2 * sample.PIECE, 2 * sample.PIECE + 3])
def test_the_first_of_the_largest_is_found_in_any_piece(vocab: int):
    logits = torch.zeros(4, vocab)
    logits[1, vocab - 1] = logits[2, 7] = logits[2, vocab - 2] = 1.0
    logits[3] = -torch.inf
    greedy = Draws(greedy=True, cuts=False, floors=False)
    assert draw_ref(logits, None, greedy).tolist() == [0, vocab - 1, 7, 0]
