"""What docs/performance.md says of one H200, measured again: `python tests/device.py [PART ...] [--out FOLDER]`.

Parts run one after the other, each a command of the product in a process of its own whose log and result stay in the
folder; a line for each number appears as soon as it is known. All of them take some 25 minutes.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).parents[1]
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
LENGTH = ("--max-len", "32768")


@dataclass(frozen=True)
class Part:
    """Arguments of Python, the most or least that numbers may be by their names, and the seconds that it may take.

    Without `wanted` there is no result, and the last line of the log is what counts.
    """

    command: tuple[str, ...]
    wanted: Mapping[str, float] = field(default_factory=dict[str, float])
    limit: float = 300
    around: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


def throughput(*arguments: str, **wanted: float) -> Part:
    """`single=4.1` is milliseconds per token, of all others seconds."""
    named = {f"{name}: {'per token' if name == 'single' else 'time'}": most for name, most in wanted.items()}
    return Part(("-m", "headrace", "bench", "throughput", *arguments, *wanted, *LENGTH), named)


LLAMA, QWEN = ("--shape", "llama-3.1-8b"), ("--shape", "qwen3-0.6b")
ONCE, TWICE = ("--repeats", "1"), ("--repeats", "2")
FP8, W4A16 = ("--quantization", "fp8"), ("--quantization", "w4a16")
MEMCHECK = ("compute-sanitizer", "--tool", "memcheck", "--target-processes", "all", "--error-exitcode", "9")

PARTS = {
    "llama": throughput(*LLAMA, single=4.1, batch32=1.65, batch256=3.2, prefill=11.9),
    "llama-mixed": throughput(*LLAMA, *TWICE, mixed=44),
    "qwen": throughput(*QWEN, single=0.95, batch32=0.62, batch256=1.25, prefill=1.25),
    "qwen-mixed": throughput(*QWEN, mixed=20),
    "fp8": throughput(*LLAMA, *FP8, single=2.5, batch32=1.5, batch256=2.79, prefill=7.6),
    "fp8-mixed": throughput(*LLAMA, *FP8, *ONCE, mixed=34),
    "w4a16": throughput(*LLAMA, *W4A16, single=2.0, batch32=1.67, batch256=3.72),
    "forms": Part(
        ("-m", "headrace", "bench", "forms", *QWEN), {"met before: against no form": 0.95, "new: against no form": 0.95}
    ),
    "tests": Part((*PYTEST, "-n", "8", "--dist", "load", "-m", "gpu", "tests"), limit=400),
    "memory": Part(
        (*PYTEST, "-n", "3", "--dist", "load", "tests/kernels", "--deselect", "tests/kernels/test_device.py"),
        limit=900, around=MEMCHECK, environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    ),
}  # fmt: skip


def run(name: str, part: Part, folder: Path) -> list[tuple[str, str, str]]:
    """(measure, value, verdict) of a part; of one that fails the last line that it said."""
    result, log = folder / f"{name}.json", folder / f"{name}.log"
    command = [
        *part.around,
        sys.executable,
        *part.command,
        *(("--output", str(result)) if part.wanted else ()),
    ]
    with log.open("w") as said:
        try:
            code = subprocess.run(
                command,
                cwd=ROOT,
                stdout=said,
                stderr=said,
                timeout=part.limit,
                env=os.environ | part.environment,
            ).returncode
        except subprocess.TimeoutExpired:
            return [("-", f"more than {part.limit:.0f} s", "cut off")]
        except FileNotFoundError as fault:
            return [("-", str(fault), "failed")]
    last = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "nothing said")
    if code or not part.wanted:
        return [("-", last, f"failed ({code})" if code else "passed")]
    found = {one["name"]: one for one in json.loads(result.read_text())["measures"]}
    return [line(found, measure, limit) for measure, limit in part.wanted.items()]


def line(found: Mapping[str, dict[str, object]], measure: str, limit: float) -> tuple[str, str, str]:
    """A number beside what is wanted of it."""
    if measure not in found:
        return measure, "-", "missing"
    value, better = float(str(found[measure]["value"])), found[measure]["better"]
    reached = value <= limit if better == "lower" else value >= limit
    return (
        measure,
        f"{value:.3f} {found[measure]['unit']}",
        f"{'reached' if reached else 'short of'} {limit:g}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is named"
    )
    parser.add_argument("--tokenizer", help="for forms, where the default model cannot be fetched")
    parser.add_argument("--out", type=Path, default=Path("device"), help="folder for logs and results")
    asked = parser.parse_args()
    if unknown := [name for name in asked.parts if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    asked.out.mkdir(parents=True, exist_ok=True)
    short = False
    for name in asked.parts or PARTS:
        began, part = monotonic(), PARTS[name]
        if name == "forms" and asked.tokenizer:
            part = replace(part, command=(*part.command, "--tokenizer", asked.tokenizer))
        for measure, value, verdict in run(name, part, asked.out.resolve()):
            print(f"{name:12} {measure:20} {value:>12}  {verdict}", flush=True)
            short |= not verdict.startswith(("reached", "passed"))
        print(f"{name:12} {monotonic() - began:.0f} s", flush=True)
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
