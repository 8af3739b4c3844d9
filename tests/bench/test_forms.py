"""The benchmark of structured output runs what it says, in turns, and takes no answer that went wrong for a number."""

import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest

from headrace.api.llm import LLM
from headrace.base.errors import Broken, Refused
from headrace.bench.forms import MET, NEW, NONE, measure, measures
from headrace.bench.workloads import custom
from headrace.engine import constrain, grammar
from headrace.engine.grammar import Compiler
from tests.tiny import config


class Run(NamedTuple):
    """One call of `generate`: its prompts, its schemas, and how many of these were read and compiled in it."""

    prompts: list[tuple[int, ...]]
    forms: list[str | None]
    work: tuple[int, int]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Every `generate` of the test."""
    seen: list[Run] = []
    done = Counter[str]()

    def counted(name: str) -> None:
        method = getattr(Compiler, name)

        def count(compiler: Compiler, asked: Any) -> Any:
            done[name] += 1
            return method(compiler, asked)

        monkeypatch.setattr(Compiler, name, count)

    counted("_read_anew")
    counted("_compile")
    generate = LLM.generate

    def spy(llm: LLM, prompts: Any, params: Any, **more: Any) -> Any:
        done.clear()
        made = generate(llm, prompts, params, **more)
        ids = [tuple(prompt["prompt_token_ids"]) for prompt in prompts]
        forms = [form and json.dumps(form.json) for form in (each.structured_outputs for each in params)]
        seen.append(Run(ids, forms, (done["_read_anew"], done["_compile"])))
        return made

    monkeypatch.setattr(LLM, "generate", spy)
    return seen


def test_kinds_take_turns_with_schemas_that_are_what_they_are_called(
    at: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(grammar, "KEPT", 3)  # new schemas push out those met before
    llm = LLM(config=config(at))
    said: list[str] = []
    speeds = measure(llm, custom(3, 5, 6, llm.intake.vocab, 256), 2, 0.8, said.append)
    met = runs[1].forms
    kinds = [NONE if run.forms[0] is None else MET if run.forms == met else NEW for run in runs]
    assert kinds == [NONE, MET, NEW, MET, NEW, NONE, NEW, NONE, MET]
    assert [run.work for run in runs] == [(3, 3) if kind == NEW else (0, 0) for kind in kinds]
    new = [form for run, kind in zip(runs, kinds, strict=True) if kind == NEW for form in run.forms]
    assert len({*met, *new}) == 3 + 3 * 3
    assert len({prompt for run in runs for prompt in run.prompts}) == 9 * 3
    assert {kind: len(found) for kind, found in speeds.items()} == {NONE: 2, MET: 2, NEW: 2}
    assert [line.split(": ")[1].rsplit(" ", 2)[0] for line in said] == kinds[3:]


def test_ratios_are_of_medians_and_their_spread_is_that_of_pairs():
    speeds = {NONE: [100.0, 200.0, 400.0], MET: [90.0, 160.0, 400.0], NEW: [50.0, 100.0, 200.0]}
    found = {m.name: m for m in measures(speeds)}
    assert list(found) == [
        *(f"{kind}: output" for kind in (NONE, MET, NEW)),
        *(f"{kind}: against {NONE}" for kind in (MET, NEW)),
    ]
    assert all(found[f"{kind}: output"].value == median(speeds[kind]) for kind in speeds)
    assert found[f"{MET}: against {NONE}"].value == pytest.approx(0.8)
    assert found[f"{MET}: against {NONE}"].spread == pytest.approx((1 - 0.8) / 2 / 0.9)
    assert found[f"{NEW}: against {NONE}"].value == pytest.approx(0.5)
    assert found[f"{NEW}: against {NONE}"].spread == 0


def test_an_answer_that_went_wrong_is_no_number(at: Path, monkeypatch: pytest.MonkeyPatch):
    llm = LLM(config=config(at))
    monkeypatch.setattr(constrain, "SLOW_STEP", -1.0)
    monkeypatch.setattr(constrain, "SLOW_MASK", -1.0)  # every form is too ambiguous to be followed
    with pytest.raises(Broken, match="3 of 3 answers ended with error; expected length or stop"):
        measure(llm, custom(3, 5, 20, llm.intake.vocab, 256), 1, 0.8)


def test_without_a_tokenizer_there_are_no_forms(at: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text((at / "config.json").read_text())
    llm = LLM(config=config(tmp_path, load_format="dummy"))
    with pytest.raises(Refused, match="no tokenizer"):
        measure(llm, custom(1, 5, 2, llm.intake.vocab, 256), 1, 0.8)
