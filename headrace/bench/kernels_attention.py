"""Attention kernels on this GPU: checked against float32, timed against the floor in bytes or operations.

    python -m headrace.bench.kernels_attention [--parts check,decode,prefill] [--tune] [--models llama-3.1-8b]

Times are of CUDA-graph replays over pages rotated beyond the L2, in microseconds per launch, medians. `--tune`
tries several configurations; the best per shape goes by hand into kernels/configs.py.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from headrace.kernels import configs
from headrace.kernels.configs import PagedDecode, PagedPrefill
from headrace.kernels.gpu.paged_decode import Workspace, decode
from headrace.kernels.gpu.paged_prefill import prefill
from headrace.kernels.paged import Pages, Scores, attend
from headrace.kernels.paged_prefill import prefill_work

BANDWIDTH = 4.24e12  # bytes/s of a device copy on an H200, measured
RATE = 587e12  # FLOP/s of cuDNN's causal attention on an H200, measured
ROTATED_BYTES = 320e6  # over five times the L2 of an H200
LAUNCHES = (20, 256)  # per graph: at least, so that starting it does not count; at most
BLOCK = 16
MODELS = {"llama-3.1-8b": (32, 8, 128), "qwen3-0.6b": (16, 8, 128)}

DECODE_CONFIGS = [
    PagedDecode(4, 4, 2, 256), PagedDecode(4, 3, 2, 256), PagedDecode(4, 3, 3, 256, 168), PagedDecode(4, 6, 1, 256),
    PagedDecode(4, 4, 2, 128), PagedDecode(4, 4, 2, 512), PagedDecode(2, 6, 4, 256), PagedDecode(2, 4, 4, 256),
    PagedDecode(8, 3, 1, 256),
]  # fmt: skip
PREFILL_CONFIGS = [
    PagedPrefill(128, 128, 8, 2), PagedPrefill(128, 128, 8, 3), PagedPrefill(128, 64, 8, 3),
    PagedPrefill(128, 64, 8, 4), PagedPrefill(64, 64, 4, 3), PagedPrefill(64, 64, 4, 2, 168),
    PagedPrefill(128, 32, 8, 3, 128),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Work:
    """Rows as (queries, keys) and what they are called in the table."""

    name: str
    rows: tuple[tuple[int, int], ...]

    def bytes(self, shape: tuple[int, int, int]) -> int:
        """What must be read and written in 16 bits: keys and values once, queries and output once."""
        heads, kv_heads, size = shape
        return sum(4 * keys * kv_heads * size + 4 * queries * heads * size for queries, keys in self.rows)

    def operations(self, shape: tuple[int, int, int]) -> int:
        """Floating-point operations of the two products, over the scores that causality leaves."""
        pairs = sum(q * n - q * (q - 1) // 2 for q, n in self.rows)
        return 4 * pairs * shape[0] * shape[2]


def alike(batch: int, keys: int, queries: int = 1) -> Work:
    """`batch` equal rows."""
    name = f"{batch} x {keys}" if queries == 1 else f"{batch} x {queries} of {keys}"
    return Work(name, ((queries, keys),) * batch)


def ragged(batch: int, least: int, most: int) -> Work:
    """Rows of evenly drawn lengths."""
    keys = np.random.default_rng(0).integers(least, most, batch).tolist()
    return Work(f"{batch} x {least}-{most}", tuple((1, n) for n in keys))


DECODES = [
    alike(1, 300), alike(1, 2048), alike(1, 16384), alike(1, 131072), alike(8, 2048), alike(32, 384),
    ragged(32, 100, 2048), alike(256, 192), ragged(256, 100, 2048), alike(512, 1024),
    Work("255 x 300, 1 x 32768", ((1, 300),) * 255 + ((1, 32768),)),
]  # fmt: skip
PREFILLS = [
    alike(4, 4096, 4096), alike(4, 2048, 2048), alike(1, 8192, 8192), alike(16, 512, 512), alike(64, 128, 128),
    alike(1, 32768, 2048), alike(32, 1024, 8),
]  # fmt: skip


def say(text: str) -> None:
    """A line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def pages_of(work: Work, shape: tuple[int, int, int], sets: int) -> list[Pages]:
    """`sets` times the same rows over different blocks, in random order, of one cache of random numbers."""
    _, kv_heads, size = shape
    counts = [-(-keys // BLOCK) for _, keys in work.rows]
    blocks = sum(counts) * sets
    k, v = (torch.empty(blocks + 1, BLOCK, kv_heads, size, dtype=torch.bfloat16, device="cuda") for _ in "kv")
    for cache in (k, v):
        cache.normal_()
    order = torch.from_numpy(np.random.default_rng(0).permutation(blocks).astype(np.int32) + 1)
    starts = np.cumsum([0] + [queries for queries, _ in work.rows]).astype(np.int32)
    context = torch.tensor([keys for _, keys in work.rows], dtype=torch.int32)
    made = []
    for part in order.split(sum(counts)):
        table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
        for row, own in enumerate(part.split(counts)):
            table[row, : len(own)] = own
        made.append(Pages(k, v, table.cuda(), torch.from_numpy(starts).cuda(), context.cuda()))
    return made


def sets_of(work: Work, shape: tuple[int, int, int]) -> int:
    """How many different sets of pages leave nothing useful in the L2."""
    return int(min(LAUNCHES[1], max(2, ROTATED_BYTES // work.bytes(shape) + 1)))


def replay_us(launches: list[Callable[[], object]], repeats: int = 7) -> float:
    """Microseconds per launch in a graph of all launches, the median of some replays."""
    launches = launches * -(-LAUNCHES[0] // len(launches))
    for launch in launches[:2]:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    graph.replay()
    times = []
    for _ in range(repeats):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) * 1e3 / len(launches))
    return statistics.median(times)


def decode_launch(
    q: Tensor, pages: Pages, out: Tensor, workspace: Workspace, config: PagedDecode, fixed: bool
) -> None:
    """One decode launch as the back end makes it."""
    programs = configs.multiprocessors(q.device) * config.programs
    scores = Scores(q.shape[2] ** -0.5)
    decode(q, pages, scores, out, workspace, config=config, programs=programs, fixed=fixed)


def work_list(pages: Pages, config: PagedPrefill, group: int) -> Tensor:
    """The list of prompt work on the device."""
    listed = prefill_work(
        pages.starts.cpu().numpy(), pages.context.cpu().numpy(), config.rows // group, least=1
    )
    return torch.from_numpy(listed).cuda()


def error(out: Tensor, wanted: Tensor) -> float:
    """Relative error of the whole tensor; NaN stays NaN."""
    return float((out.double() - wanted.double()).norm() / wanted.double().norm())


def reference(q: Tensor, pages: Pages, scores: Scores) -> Tensor:
    """The definition in float32, its queries in bunches so that long rows fit."""
    out = torch.empty_like(q)
    starts = pages.starts.tolist()
    for row, keys in enumerate(pages.context.tolist()):
        slots = torch.arange(keys, device="cuda")
        slots = pages.table[row].long()[slots // BLOCK] * BLOCK + slots % BLOCK
        k, v = (x.flatten(0, 1)[slots].float() for x in (pages.k, pages.v))
        for a in range(starts[row], starts[row + 1], 256):
            b = min(a + 256, starts[row + 1])
            seen = keys - (starts[row + 1] - b)
            out[a:b] = attend(q[a:b], k[:seen], v[:seen], scores)
    return out


def check(models: list[str]) -> None:
    """Errors against the definition: bf16 inputs, so about 2e-3 is what rounding leaves; the worst is marked."""
    torch.backends.cuda.matmul.allow_tf32 = False
    decodes = [
        alike(1, 300),
        ragged(70, 1, 900),
        alike(2, 20000),
        Work("with 0 and 1", ((1, 1), (1, 17), (1, 5000))),
    ]
    prefills = [Work("mixed", ((700, 700), (33, 1500), (2, 2), (129, 129), (1, 77))), alike(1, 3000, 3000)]
    rules = [{}, {"softcap": 20.0}, {"window": 333}]
    for name in models:
        shape = MODELS[name]
        for work, rule in [(w, r) for w in decodes + prefills for r in rules]:
            pages = pages_of(work, shape, 1)[0]
            q = torch.randn(int(pages.starts[-1]), shape[0], shape[2], device="cuda").bfloat16()
            scores = Scores(shape[2] ** -0.5, **rule)
            wanted = reference(q, pages, scores)
            errors = [error(out, wanted) for out in tried(q, pages, scores, work in decodes)]
            good = all(e < 5e-3 for e in errors)
            say(
                f"{'ok ' if good else 'BAD'} {name:13s} {work.name:18s} {rule} "
                + " ".join(f"{e:.1e}" for e in errors)
            )


def tried(q: Tensor, pages: Pages, scores: Scores, decoding: bool) -> Iterator[Tensor]:
    """Outputs of the kernels that serve these rows, each written over NaN and twice, equal bit for bit."""
    cap, size, group = configs.capability(q.device), q.shape[2], q.shape[1] // pages.k.shape[2]
    if decoding:
        best, workspace = configs.paged_decode(cap, size), Workspace(q.device)
        programs = configs.multiprocessors(q.device) * best.programs
        launch = partial(decode, q, pages, scores, workspace=workspace, config=best, programs=programs)
        calls = [partial(launch, fixed=fixed) for fixed in (False, True)]
    else:
        best = configs.paged_prefill(cap, size)
        calls = [partial(prefill, q, pages, scores, work_W2=work_list(pages, best, group), config=best)]
    for call in calls:
        one, two = torch.full_like(q, float("nan")), torch.full_like(q, float("nan"))
        call(out_THD=one)
        call(out_THD=two)
        yield one if torch.equal(one, two) else torch.full_like(q, float("nan"))


def time_decode(model: str, tune: bool) -> None:
    """Microseconds, TB/s and share of the floor per shape; with `tune` the best configuration too."""
    shape = MODELS[model]
    default = configs.paged_decode(configs.capability(torch.device("cuda")), shape[2])
    tries = [default, *(c for c in DECODE_CONFIGS if c != default)] if tune else [default]
    jobs = [partial(warm_decode, shape, config, rows) for config in tries for rows in (1, 100)]
    compile_all(jobs + [partial(warm_decode, shape, default, rows, True) for rows in (1, 100)])
    workspace = Workspace(torch.device("cuda"))
    say(f"\n{model} decode: us (TB/s, % of floor) with {default}; fixed; best of {len(tries)}")
    for work in DECODES:
        every = pages_of(work, shape, sets_of(work, shape))
        q = torch.randn(len(work.rows), shape[0], shape[2], device="cuda").bfloat16()
        out = torch.empty_like(q)

        def took(config: PagedDecode, fixed: bool = False, every=every, q=q, out=out) -> float:
            return replay_us([partial(decode_launch, q, p, out, workspace, config, fixed) for p in every])

        times = {config: took(config) for config in tries}
        best = min(times, key=lambda c: times[c])
        us, floor = times[default], work.bytes(shape) / BANDWIDTH * 1e6
        say(
            f"{work.name:22s} {us:8.1f} ({work.bytes(shape) / us / 1e6:4.2f}, {floor / us:4.0%}); fixed "
            f"{took(default, True):8.1f}; best {times[best]:8.1f} ({floor / times[best]:4.0%}) {tuple_of(best)}"
        )
        if tune:
            say("    " + "  ".join(f"{tuple_of(c)} {t:.1f}" for c, t in times.items()))


def tuple_of(config: PagedDecode | PagedPrefill) -> str:
    """A configuration in few characters."""
    return "/".join("-" if value is None else str(value) for value in astuple(config))


def warm_decode(shape: tuple[int, int, int], config: PagedDecode, rows: int, fixed: bool = False) -> None:
    """Compile what `rows` rows need."""
    pages = pages_of(alike(rows, 16), shape, 1)[0]
    q = torch.randn(rows, shape[0], shape[2], device="cuda").bfloat16()
    decode_launch(q, pages, torch.empty_like(q), Workspace(q.device), config, fixed)


def warm_prefill(shape: tuple[int, int, int], config: PagedPrefill) -> None:
    """Compile one configuration, for pages and for keys one after the other."""
    pages = pages_of(alike(1, 16, 16), shape, 1)[0]
    q, k = (torch.randn(16, heads, shape[2], device="cuda").bfloat16() for heads in shape[:2])
    work = work_list(pages, config, shape[0] // shape[1])
    for fresh in (None, (k, k)):
        prefill(q, pages, Scores(1.0), torch.empty_like(q), work, config=config, fresh=fresh)


def compile_all(jobs: Sequence[Callable[[], None]]) -> None:
    """Run jobs in processes of their own, which leave what they compiled in Triton's cache."""
    if len(jobs) > 4:
        with ProcessPoolExecutor(min(len(jobs), 12), get_context("spawn")) as pool:
            for done in [pool.submit(job) for job in jobs]:
                done.result()


def time_prefill(model: str, tune: bool) -> None:
    """Microseconds and TFLOP/s per shape; with `tune` the best configuration too."""
    shape = MODELS[model]
    default = configs.paged_prefill(configs.capability(torch.device("cuda")), shape[2])
    tries = [default, *(c for c in PREFILL_CONFIGS if c != default)] if tune else [default]
    compile_all([partial(warm_prefill, shape, config) for config in tries])
    scores, group = Scores(shape[2] ** -0.5), shape[0] // shape[1]
    say(
        f"\n{model} prefill: us (TFLOP/s, % of {RATE / 1e12:.0f}) with {default}; without pages; best of {len(tries)}"
    )
    for work in PREFILLS:
        every = pages_of(work, shape, 2)
        tokens = int(every[0].starts[-1])
        q, k = (torch.randn(tokens, heads, shape[2], device="cuda").bfloat16() for heads in shape[:2])
        out = torch.empty_like(q)

        def took(config: PagedPrefill, fresh=None, every=every, q=q, out=out) -> float:
            listed = work_list(every[0], config, group)
            launch = partial(prefill, config=config, fresh=fresh)
            return replay_us([partial(launch, q, p, scores, out, listed) for p in every])

        times = {config: took(config) for config in tries}
        best = min(times, key=lambda c: times[c])
        rate = {c: work.operations(shape) / t / 1e6 for c, t in times.items()}
        plain = took(default, (k, k)) if all(a == b for a, b in work.rows) else float("nan")
        say(
            f"{work.name:22s} {times[default]:8.1f} ({rate[default]:4.0f}, {rate[default] * 1e12 / RATE:4.0%}); plain "
            f"{work.operations(shape) / plain / 1e6:4.0f}; best {rate[best]:4.0f} {tuple_of(best)}"
        )
        if tune:
            say("    " + "  ".join(f"{tuple_of(c)} {r:.0f}" for c, r in rate.items()))
    if tune:
        say_library(shape)


def say_library(shape: tuple[int, int, int]) -> None:
    """What torch's own attention reaches on contiguous keys, 4 x 4096, causal."""
    work = alike(4, 4096, 4096)
    q, k, v = (
        torch.randn(4, h, 4096, shape[2], device="cuda").bfloat16() for h in (shape[0], shape[1], shape[1])
    )
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        with sdpa_kernel(backend):
            us = replay_us(
                [partial(scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True)] * 2
            )
        say(f"{backend.name} {work.name}: {work.operations(shape) / us / 1e6:.0f} TFLOP/s")


def main() -> None:
    """Parse, then run the parts in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="check,decode,prefill")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--tune", action="store_true")
    given = parser.parse_args()
    models, parts = given.models.split(","), given.parts.split(",")
    torch.manual_seed(0)
    if "check" in parts:
        check(models)
    for model in models:
        if "decode" in parts:
            time_decode(model, given.tune)
        if "prefill" in parts:
            time_prefill(model, given.tune)


if __name__ == "__main__":
    main()
