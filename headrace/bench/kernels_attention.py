"""Attention kernels on this GPU: checked against float32, timed against the floor in bytes or operations.

    python -m headrace.bench.kernels_attention [--parts check,decode,prefill] [--tune] [--models llama-3.1-8b]

Times are of CUDA-graph replays over pages rotated beyond the L2, in microseconds per launch, medians. `--tune`
tries several configurations; the best per shape goes by hand into kernels/configs.py.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from headrace.bench.kernels_attention_work import (
    BLOCK,
    DECODES,
    PREFILLS,
    Work,
    alike,
    pages_of,
    ragged,
    replay_us,
    say,
    sets_of,
)
from headrace.kernels import configs
from headrace.kernels.configs import PagedDecode, PagedPrefill
from headrace.kernels.gpu.paged_decode import Workspace, decode
from headrace.kernels.gpu.paged_prefill import prefill
from headrace.kernels.gpu.rotate import rotate_store
from headrace.kernels.paged import Pages, Scores, attend
from headrace.kernels.paged_prefill import prefill_work

BANDWIDTH = 4.24e12  # bytes/s of a device copy on an H200, measured
RATE = 587e12  # FLOP/s of cuDNN's causal attention on an H200, measured
MODELS = {"llama-3.1-8b": (32, 8, 128), "qwen3-0.6b": (16, 8, 128)}

FEW_PAIRS = 264  # (row, kv head) pairs up to which the configurations for few rows are tried
FEW_CONFIGS = [
    PagedDecode(4, 4, 2, 64, None, 0, 512), PagedDecode(4, 4, 2, 64, None, 256, 512),
    PagedDecode(4, 4, 2, 64, None, 256), PagedDecode(4, 4, 2, 64, None, 512, 512),
    PagedDecode(4, 4, 2, 128, None, 256, 512), PagedDecode(4, 6, 1, 128, None, 256, 512),
    PagedDecode(8, 3, 1, 128, None, 0, 512), PagedDecode(8, 3, 1, 128, None, 512, 512),
    PagedDecode(8, 2, 1, 128, None, 1024, 1024), PagedDecode(2, 4, 4, 64, None, 128, 256),
    PagedDecode(2, 4, 4, 256, None, 512, 256),
]  # fmt: skip
DECODE_CONFIGS = [
    PagedDecode(4, 4, 2, 256), PagedDecode(4, 6, 1, 256), PagedDecode(2, 4, 4, 256),
    PagedDecode(2, 4, 4, 256, None, None, 64), PagedDecode(2, 4, 4, 256, None, None, 128),
    PagedDecode(2, 3, 5, 256, 200), PagedDecode(1, 6, 8, 256),
]  # fmt: skip
PREFILL_CONFIGS = [
    PagedPrefill(128, 128, 8, 2), PagedPrefill(128, 128, 8, 3), PagedPrefill(128, 64, 8, 3),
    PagedPrefill(64, 64, 4, 3), PagedPrefill(64, 64, 4, 2, 168), PagedPrefill(64, 32, 4, 3),
    PagedPrefill(128, 32, 8, 3, 128), PagedPrefill(128, 64, 8, 2, 128),
]  # fmt: skip


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


CHECKED_DECODES = [
    alike(1, 300), ragged(70, 1, 900), alike(2, 20000), Work("with 0 and 1", ((1, 1), (1, 17), (1, 5000))),
]  # fmt: skip
CHECKED_PREFILLS = [
    Work("mixed", ((700, 700), (33, 1500), (2, 2), (129, 129), (1, 77))), alike(1, 3000, 3000),
]  # fmt: skip
RULES = [{}, {"softcap": 20.0}, {"window": 333}]


def check(name: str, work: Work, rule: dict[str, Any]) -> str:
    """Errors against the definition: bf16 inputs, so about 2e-3 is what rounding leaves."""
    torch.backends.cuda.matmul.allow_tf32 = False
    shape = MODELS[name]
    pages = pages_of(work, shape, 1)[0]
    q = torch.randn(int(pages.starts[-1]), shape[0], shape[2], device="cuda").bfloat16()
    scores = Scores(shape[2] ** -0.5, **rule)
    wanted = reference(q, pages, scores)
    errors = [error(out, wanted) for out in tried(q, pages, scores, work in CHECKED_DECODES)]
    mark = "ok " if all(e < 5e-3 for e in errors) else "BAD"
    return f"{mark} {name} {work.name} {rule} " + " ".join(f"{e * 1e3:.1f}" for e in errors)


def tried(q: Tensor, pages: Pages, scores: Scores, decoding: bool) -> Iterator[Tensor]:
    """Outputs of the kernels that serve these rows, each written over NaN and twice, equal bit for bit."""
    cap, size, group = configs.capability(q.device), q.shape[2], q.shape[1] // pages.k.shape[2]
    if decoding:
        workspace, one = Workspace(q.device), configs.multiprocessors(q.device)
        whole = configs.paged_decode(cap, size)
        given = configs.paged_decode(cap, size, pages.context.shape[0] * pages.k.shape[2])
        launch = partial(decode, q, pages, scores, workspace=workspace)
        calls = [
            partial(launch, config=c, programs=one * c.programs, fixed=fixed)
            for c, fixed in (*((c, False) for c in (given, *FEW_CONFIGS[-5::2], whole)), (whole, True))
        ]
    else:
        tries = {configs.paged_prefill(cap, size, *n) for n in ((8, 8), (99, 999), (9999, 9999))}
        calls = [
            partial(prefill, q, pages, scores, work_W2=work_list(pages, c, group), config=c)
            for c in sorted(tries, key=str)
        ]
    for call in calls:
        one, two = torch.full_like(q, float("nan")), torch.full_like(q, float("nan"))
        call(out_THD=one)
        call(out_THD=two)
        yield one if torch.equal(one, two) else torch.full_like(q, float("nan"))


def decode_configs(model: str, tune: bool) -> list[PagedDecode]:
    """Those of the tables, then those to try."""
    cap, shape = configs.capability(torch.device("cuda")), MODELS[model]
    chosen = [configs.paged_decode(cap, shape[2], pairs) for pairs in (1, FEW_PAIRS, configs.MANY)]
    return list(dict.fromkeys(chosen + (FEW_CONFIGS + DECODE_CONFIGS if tune else [])))


def prefill_configs(model: str, tune: bool) -> list[PagedPrefill]:
    """As decode_configs."""
    cap, shape = configs.capability(torch.device("cuda")), MODELS[model]
    chosen = [configs.paged_prefill(cap, shape[2], *work.means()) for work in PREFILLS]
    return list(dict.fromkeys(chosen + (PREFILL_CONFIGS if tune else [])))


def time_decode(model: str, tune: bool) -> None:
    """Microseconds and share of the floor per shape, alone and after what precedes attention in a layer."""
    every = decode_configs(model, tune)
    letter = {config: chr(ord("A") + i) for i, config in enumerate(every)}
    workspace = Workspace(torch.device("cuda"))
    say(
        f"\n{model} decode, us alone/after rotate_store: default (% of floor), fixed, then every configuration"
    )
    say("  ".join(f"{name}={tuple_of(config)}" for config, name in letter.items()))
    for work in DECODES:
        say(decode_line(work, MODELS[model], letter, workspace))


def serves(config: PagedDecode, rows: int, shape: tuple[int, int, int]) -> bool:
    """Whether a configuration for few rows has the programs for so many; those for many serve any number."""
    programs = configs.multiprocessors(torch.device("cuda")) * config.programs
    return config.alone is None or 2 * rows * shape[1] <= programs


def decode_line(
    work: Work, shape: tuple[int, int, int], letter: dict[PagedDecode, str], workspace: Workspace
) -> str:
    """One shape's line of the table."""
    rows, cap = len(work.rows), configs.capability(torch.device("cuda"))
    every = pages_of(work, shape, sets_of(work, shape))
    q, k = (torch.randn(rows, heads, shape[2], device="cuda").bfloat16() for heads in shape[:2])
    out, few = torch.empty_like(q), rows * shape[1] <= FEW_PAIRS
    rope = torch.randn(max(keys for _, keys in work.rows), shape[2], device="cuda")
    position = every[0].context.long() - 1
    newest = [
        (p.table.gather(1, position[:, None] // BLOCK)[:, 0] * BLOCK + position % BLOCK).long() for p in every
    ]

    def store(pages: Pages, slots: Tensor) -> Tensor:
        return rotate_store(
            q, k, k, position, rope, None, None, 1e-6, 0.0, pages.k, pages.v, slots, configs.pdl(q.device)
        )

    def after(pages: Pages, slots: Tensor, config: PagedDecode) -> None:
        decode_launch(store(pages, slots), pages, out, workspace, config, False)

    def took(config: PagedDecode, fixed: bool = False) -> float:
        return replay_us([partial(decode_launch, q, p, out, workspace, config, fixed) for p in every])

    def pair(config: PagedDecode) -> float:
        return replay_us([partial(after, p, s, config) for p, s in zip(every, newest, strict=True)])

    chosen = configs.paged_decode(cap, shape[2], rows * shape[1])
    times = {c: took(c) for c in letter if serves(c, rows, shape)}
    pairs = {c: pair(c) for c in times} if few else {}
    us, floor = times[chosen], work.bytes(shape) / BANDWIDTH * 1e6
    fixed = took(configs.paged_decode(cap, shape[2]), fixed=True)
    alone = replay_us([partial(store, p, s) for p, s in zip(every, newest, strict=True)]) if few else 0.0
    told = " ".join(f"{letter[c]}{t:.1f}" + (f"/{pairs[c]:.1f}" if few else "") for c, t in times.items())
    return (
        f"{work.name}: {letter[chosen]} {us:.1f} ({floor / us:.0%}) fixed {fixed:.1f}"
        + (f" rotate {alone:.1f}" if few else "") + f" | {told}"
    )  # fmt: skip


def tuple_of(config: PagedDecode | PagedPrefill) -> str:
    """A configuration in few characters."""
    return "/".join("-" if value is None else str(value) for value in astuple(config)).removesuffix("/-/-/0")


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


def prepare(models: list[str], parts: list[str], tune: bool) -> list[str]:
    """Compile everything in processes of their own, which leave it in Triton's cache; returns what checks say."""
    jobs: list[Callable[[], str | None]] = []
    for name in models:
        shape = MODELS[name]
        if "check" in parts:
            works = CHECKED_PREFILLS + CHECKED_DECODES
            jobs += [partial(check, name, work, rule) for work in works for rule in RULES]
        if "decode" in parts:
            chosen = [(c, n) for c in decode_configs(name, tune) for n in (1, 32, 100) if serves(c, n, shape)]
            jobs += [partial(warm_decode, shape, config, rows) for config, rows in chosen]
            jobs += [
                partial(
                    warm_decode,
                    shape,
                    configs.paged_decode(configs.capability(torch.device("cuda")), shape[2]),
                    rows,
                    True,
                )
                for rows in (1, 32, 100)
            ]
        if "prefill" in parts:
            jobs += [partial(warm_prefill, shape, config) for config in prefill_configs(name, tune)]
    with ProcessPoolExecutor(14, get_context("spawn")) as pool:
        done = [pool.submit(job) for job in jobs]
        return [text for text in (job.result() for job in done) if text is not None]


def time_prefill(model: str, tune: bool) -> None:
    """TFLOP/s per shape: the default for it, then every configuration."""
    shape, cap = MODELS[model], configs.capability(torch.device("cuda"))
    chosen = {work: configs.paged_prefill(cap, shape[2], *work.means()) for work in PREFILLS}
    every = prefill_configs(model, tune)
    letter = {config: chr(ord("A") + i) for i, config in enumerate(every)}
    scores, group = Scores(shape[2] ** -0.5), shape[0] // shape[1]
    say(
        f"\n{model} prefill, TFLOP/s: default (us, % of {RATE / 1e12:.0f}; without pages), then every configuration"
    )
    say("  ".join(f"{name}={tuple_of(config)}" for config, name in letter.items()))
    for work in PREFILLS:
        sets = pages_of(work, shape, 2)
        tokens, best = int(sets[0].starts[-1]), chosen[work]
        q, k = (torch.randn(tokens, heads, shape[2], device="cuda").bfloat16() for heads in shape[:2])
        out = torch.empty_like(q)

        def took(config: PagedPrefill, fresh=None, sets=sets, q=q, out=out) -> float:
            launch = partial(prefill, config=config, fresh=fresh)
            listed = work_list(sets[0], config, group)
            return replay_us([partial(launch, q, p, scores, out, listed) for p in sets])

        times = {config: took(config) for config in every}
        rate = {c: work.operations(shape) / t / 1e6 for c, t in times.items()}
        plain = took(best, (k, k)) if all(a == b for a, b in work.rows) else float("nan")
        told = " ".join(f"{letter[c]}{r:.0f}" for c, r in rate.items())
        say(
            f"{work.name}: {letter[best]} {rate[best]:.0f} ({times[best]:.1f} us, {rate[best] * 1e12 / RATE:.0%}; "
            f"{work.operations(shape) / plain / 1e6:.0f}) | {told}"
        )
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
    started = time.perf_counter()
    for line in prepare(models, parts, given.tune):
        say(line)
    say(f"prepared in {time.perf_counter() - started:.0f} s")
    for model in models:
        if "decode" in parts:
            time_decode(model, given.tune)
        if "prefill" in parts:
            time_prefill(model, given.tune)
    say(f"done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
