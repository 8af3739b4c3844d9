"""Loads an OpenAI-compatible server and says how it did."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from rich.console import Console

from headrace.base.config import knob
from headrace.base.errors import Fault, Refused
from headrace.base.hardware import cores

if TYPE_CHECKING:
    from headrace.bench.serve.arrivals import Load
    from headrace.bench.serve.campaign import Campaign, Level
    from headrace.bench.serve.compare import Gate, Row
    from headrace.bench.serve.data import Source

KEY = "OPENAI_API_KEY"
MOST_STREAMS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Which server is asked, and how."""

    url: str = knob("http://127.0.0.1:8000", "address of the server")
    model: str | None = knob(None, "model to ask for; default: the only one the server has")
    api_key: str | None = knob(None, f"key to send; default: the variable {KEY}")
    endpoint: Literal["chat", "completions"] = knob("chat", "chat sends prompts as a user's message")
    stream: bool = knob(True, "have answers streamed; without, there is no first token to time")
    ignore_eos: bool = knob(True, "ask for answers of exactly the length wanted")
    temperature: float | None = knob(0.0, "sampling temperature that is asked for")
    extra: str | None = knob(None, "JSON object of further fields for every request's body")
    verify: bool = knob(True, "check the certificate of an https server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """When requests are sent."""

    rate: str | None = knob(None, "requests per second, or several levels: 1,2,4; inf is all at once")
    concurrency: str | None = knob(
        None, "instead of a rate: so many streams, each busy all the time; or 1,8,64"
    )
    pattern: Literal["poisson", "constant", "burst", "ramp"] = knob("poisson", "how arrivals are spread")
    burstiness: float = knob(1.0, "shape of the gamma distribution of gaps; 1: Poisson; below: in clumps")
    burst: int = knob(8, "requests that come at once with --pattern burst")
    ramp_from: float = knob(0.0, "rate at which --pattern ramp begins")
    replay: Path | None = knob(
        None, "trace to replay: JSON lines with timestamp, input_length, output_length"
    )
    sweep: bool = knob(False, "find the curve from idle to saturated by itself")
    requests: int | None = knob(None, "most requests per level")
    duration: float | None = knob(None, "seconds per level; default: 30 if --requests is not given either")
    warmup: int = knob(3, "requests before, that nobody counts")
    cancel: float = knob(0.0, "part of the requests that are hung up on, 0 to 1")
    timeout: float = knob(600.0, "seconds after which a request is given up")
    drain: float = knob(60.0, "seconds that answers are waited for after the last request was due")
    processes: int | None = knob(None, "client processes; default: half of the cores, 8 at most")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What is asked."""

    tokens_in: str = knob(
        "128", "prompt length: 128, 64-256, normal:128,32, lognormal:128,0.5, 128:0.7,1024:0.3"
    )
    tokens_out: str | None = knob(None, "answer length, in the same way; default: 128, or what a file says")
    prefix_tokens: int = knob(0, "tokens at the beginning that prompts of a group share")
    prefix_groups: int = knob(1, "how many such groups there are")
    turns: str = knob("1", "requests per conversation; later ones bring the earlier answers along")
    think: str = knob("0", "seconds between an answer and the next turn, such as exp:2")
    data: Path | None = knob(None, "file of prompts instead: JSON lines, or ShareGPT's list of conversations")
    data_kind: Literal["auto", "jsonl", "sharegpt"] = knob("auto", "what the file is; auto looks into it")
    seed: int = knob(0, "the same seed asks the same at the same times")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is wanted of the server, and where results go."""

    goodput: str | None = knob(None, "limits of a good request in seconds: ttft=0.5,tpot=0.05,e2e=10")
    find_slo: str | None = knob(None, "search the highest rate that holds: ttft_p99<0.5,tpot_p99<0.05")
    definitions: Literal["headrace", "vllm", "guidellm", "mlperf"] = knob(
        "headrace", "whose definitions of TTFT, TPOT and ITL the tables use"
    )
    self_test: bool = knob(True, "first find out what this client can take")
    output: Path | None = knob(None, "JSON file to write")
    csv: Path | None = knob(None, "CSV file to write, a line per level")
    samples: Path | None = knob(None, "JSON lines file to write, a line per request")
    html: Path | None = knob(None, "report to write: one HTML file that loads nothing")
    compare: Path | None = knob(None, "earlier JSON file to compare with")
    fail_if: list[str] | None = knob(None, "exit with 1 past such a change: 'tpot_p99 +5%'")


def _flags(name: str, order: int) -> Parameter:
    return Parameter(name="*", group=Group(name, sort_key=order))


def run(
    *,
    server: Annotated[Server, _flags("Server", 1)] = Server(),
    traffic: Annotated[Traffic, _flags("Load", 2)] = Traffic(),
    prompts: Annotated[Prompts, _flags("Prompts", 3)] = Prompts(),
    judgement: Annotated[Judgement, _flags("Result", 4)] = Judgement(),
) -> int:
    """Load an OpenAI-compatible server from outside and measure latency, throughput and goodput.

    Without --rate, --concurrency, --sweep or --find-slo, 8 streams are kept busy for 30 seconds. Latency counts from
    when a request was due, not from when it was sent. Every number is defined in docs/bench-serve.md.
    """
    from headrace.bench.serve.compare import read, read_gates
    from headrace.bench.serve.export import document
    from headrace.bench.serve.probe import version

    console, told = Console(), Console(stderr=True)
    gates = read_gates(judgement.fail_if or [])
    if gates and judgement.compare is None:
        raise Refused("--fail-if is given without --compare", param="fail-if", hint="give the earlier file")
    before = None if judgement.compare is None else read(judgement.compare)
    if before is not None and (theirs := before.get("definitions")) != judgement.definitions:
        raise Refused(
            f"{judgement.compare} has its numbers as {theirs} defines them, and this run as {judgement.definitions}",
            param="definitions",
            hint=f"give --definitions {theirs}",
        )
    campaign = _campaign(server, traffic, prompts, judgement, told)
    settings = {**asdict(server), **asdict(traffic), **asdict(prompts)}
    settings |= {"api_key": None, "model": campaign.ask.model}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    settings["server_version"] = version(campaign.target)
    if judgement.self_test:
        settings["client"] = _test_self(told)
    levels, found, ended = _play(campaign, traffic, judgement, console, told)
    said = document(campaign, levels, settings, found)
    rows: list[Row] = []
    try:
        rows = _against(before, said, gates, console)
    finally:  # what was measured is kept, even if it cannot be compared
        _write(said, levels, rows, judgement)
    if ended is not None:
        raise ended
    nothing = not any(level.whole.outcomes.get("ok") for level in levels)
    return int(nothing or any(row.broken for row in rows))


# -- what is asked for ----------------------------------------------------------------------------------------


def _campaign(
    server: Server, traffic: Traffic, prompts: Prompts, judgement: Judgement, told: Console
) -> "Campaign":
    import msgspec

    from headrace.bench.serve.campaign import Campaign
    from headrace.bench.serve.connection import Target
    from headrace.bench.serve.data import conversations
    from headrace.bench.serve.dialect import Ask
    from headrace.bench.serve.measures import read_limits
    from headrace.bench.serve.probe import find_model

    _check(server, traffic, prompts, judgement)
    key = server.api_key or os.environ.get(KEY) or ""
    if not (key.isascii() and key.isprintable()):
        raise Refused("the key has characters that no header may have", param="api_key", hint=f"see ${KEY}")
    target = Target.of(server.url, {"Authorization": f"Bearer {key}"} if key else {}, server.verify)
    try:
        extra = msgspec.json.decode(server.extra, type=dict[str, Any]) if server.extra else {}
    except msgspec.DecodeError as fault:
        raise Refused(f"--extra is no JSON object: {fault}", param="extra") from fault
    model, longest = find_model(target, server.model)
    ask = Ask(
        endpoint=server.endpoint, model=model, stream=server.stream, ignore_eos=server.ignore_eos,
        temperature=server.temperature, extra=extra,
    )  # fmt: skip
    said = f", {longest} tokens at most" if longest else ""
    told.print(f"{model} at {target.url}{said}", highlight=False)
    source = _source(traffic, prompts, target, model)
    next(conversations(source, prompts.seed))  # so that what is wrong with it is said here
    return Campaign(
        target, ask, source, prompts.seed, traffic.processes or max(1, min(8, cores() // 2)),
        timeout=traffic.timeout, drain=traffic.drain, cancel=traffic.cancel, definitions=judgement.definitions,
        limits=None if judgement.goodput is None else read_limits(judgement.goodput),
    )  # fmt: skip


def _check(server: Server, traffic: Traffic, prompts: Prompts, judgement: Judgement) -> None:
    """Refuse what makes no sense before anything is sent."""
    from headrace.bench.serve.arrivals import times
    from headrace.bench.serve.search import read_limits
    from headrace.cli.bench._checks import at_least, check

    at_least(0, temperature=server.temperature)
    if server.endpoint == "completions" and prompts.turns != Prompts().turns:
        raise Refused(
            "--turns is given, and --endpoint completions", param="turns", hint="conversations are chat"
        )
    usual = {**asdict(Traffic()), **asdict(Prompts()), **asdict(Judgement())}
    check({**asdict(traffic), **asdict(prompts), **asdict(judgement)}, usual)
    for load in _loads(traffic):
        if load.streams is None and not load.replay:
            times(load, 0)
    limits = [] if judgement.find_slo is None else read_limits(judgement.find_slo)
    if judgement.goodput is None and any(limit.name in ("goodput", "attained") for limit in limits):
        raise Refused(
            f"--find-slo {judgement.find_slo} needs to know what a good request is",
            param="find_slo",
            hint="say it with --goodput, such as ttft=0.5,tpot=0.05",
        )


def _source(traffic: Traffic, prompts: Prompts, target: Any, model: str) -> "Source":
    from headrace.bench.serve import data
    from headrace.bench.serve.probe import weigh_words

    if prompts.data is not None and traffic.replay is None:
        path, out, think = str(prompts.data), prompts.tokens_out, prompts.think
        return data.Prompts(path=path, kind=prompts.data_kind, tokens_out=out, think=think)
    words, per_word = weigh_words(target, model)
    if traffic.replay is not None:
        path, out = str(traffic.replay), prompts.tokens_out
        return data.Prompts(path=path, kind="trace", tokens_out=out, words=words, per_word=per_word)
    return data.Synthetic(
        tokens_in=prompts.tokens_in, tokens_out=prompts.tokens_out or "128", prefix=prompts.prefix_tokens,
        groups=prompts.prefix_groups, turns=prompts.turns, think=prompts.think, words=words, per_word=per_word,
    )  # fmt: skip


def _loads(traffic: Traffic) -> "list[Load]":
    """The levels that the flags name."""
    from msgspec import structs

    from headrace.bench.serve.arrivals import Load

    duration = traffic.duration
    if duration is None and traffic.requests is None and traffic.replay is None:
        duration = 30.0
    base = Load(
        pattern=traffic.pattern, requests=traffic.requests, duration=duration, burstiness=traffic.burstiness,
        burst=traffic.burst, ramp_from=traffic.ramp_from, replay=traffic.replay is not None,
    )  # fmt: skip
    if traffic.rate is not None:
        return [structs.replace(base, rate=rate) for rate in _numbers(traffic.rate, "rate")]
    if base.replay:
        return [base]
    streams = _numbers(traffic.concurrency or "8", "concurrency")
    if not all(number.is_integer() and number <= MOST_STREAMS for number in streams):
        raise Refused(
            f"--concurrency is {traffic.concurrency!r}; expected whole numbers up to {MOST_STREAMS}",
            param="concurrency",
        )
    return [structs.replace(base, streams=int(number)) for number in streams]


def _numbers(text: str, flag: str) -> list[float]:
    try:
        found = [inf if part.strip() == "inf" else float(part) for part in text.split(",")]
        if all(number > 0 for number in found):
            return found
    except ValueError:
        pass
    raise Refused(f"--{flag} is {text!r}; expected a number above 0, or several as in 1,2,4", param=flag)


# -- playing --------------------------------------------------------------------------------------------------


def _test_self(told: Console) -> dict[str, float]:
    from headrace.bench.serve.selftest import measure

    found = measure()
    told.print(
        f"this client takes {found.per_second:,.0f} tokens/s in one process here, {found.per_core:,.0f} per second"
        f" of its own processor time; its clock is off by {found.jitter_p99 * 1000:.2f} ms (p99)",
        highlight=False,
    )
    return found._asdict()


def _play(
    campaign: "Campaign", traffic: Traffic, judgement: Judgement, console: Console, told: Console
) -> "tuple[list[Level], dict[str, Any] | None, BaseException | None]":
    """All levels, shown as they come; what a search found; what ended it too early, where there is a level by then."""
    from headrace.cli.bench._ending import unwound
    from headrace.cli.bench._live import Watch
    from headrace.cli.bench._tables import shown

    levels: list[Level] = []
    found: dict[str, Any] | None = None
    ended: BaseException | None = None
    with unwound(), Watch(told) as watch:
        campaign = replace(campaign, told=watch.told)
        campaign.warm_up(traffic.warmup)
        try:
            for one in _steps(campaign, traffic, judgement, levels):
                found = one or found
                console.print(shown(levels[-1], found))
                if levels[-1].dead:
                    break
        except (KeyboardInterrupt, SystemExit, Fault) as fault:
            if not levels:
                raise
            ended = fault
            told.print("[yellow]stopped: what was measured until now follows[/]")
    return levels, found, ended


def _steps(
    campaign: "Campaign", traffic: Traffic, judgement: Judgement, levels: "list[Level]"
) -> "Iterator[dict[str, Any] | None]":
    """Play level after level, each added to `levels`; a search tells what it knows."""
    from headrace.bench.serve import search

    def play(load: "Load") -> "Level":
        levels.append(campaign.level(load, len(levels)))
        return levels[-1]

    base = _loads(replace(traffic, rate=None, concurrency=None))[0]
    duration = traffic.duration or 30.0
    if judgement.find_slo is not None:
        limits = search.read_limits(judgement.find_slo)
        begin = _numbers(traffic.rate, "rate")[0] if traffic.rate else 1.0
        for found in search.search(limits, begin, duration, base, play):
            yield {"limits": judgement.find_slo, **found._asdict()}
    elif traffic.sweep:
        for _ in search.sweep(duration, base, play):
            yield None
    else:
        for load in _loads(traffic):
            play(load)
            yield None


# -- results --------------------------------------------------------------------------------------------------


def _against(
    before: dict[str, Any] | None, said: dict[str, Any], gates: "list[Gate]", console: Console
) -> "list[Row]":
    if before is None:
        return []
    from headrace.bench.serve.compare import compare
    from headrace.cli.bench._tables import comparison

    rows = compare(before, said, gates)
    console.print(comparison(rows))
    return rows


def _write(said: dict[str, Any], levels: "list[Level]", rows: "list[Row]", judgement: Judgement) -> None:
    from headrace.bench import files
    from headrace.bench.serve import export, report

    if judgement.output is not None:
        export.write_json(judgement.output, said)
    if judgement.csv is not None:
        export.write_csv(judgement.csv, levels)
    if judgement.samples is not None:
        export.write_samples(judgement.samples, levels)
    if judgement.html is not None:
        files.write(judgement.html, report.html(said, levels, rows), "html")
