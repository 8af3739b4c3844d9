"""What is asked."""

import json
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from headrace.base.errors import Refused
from headrace.bench.serve.arrivals import Load
from headrace.bench.serve.client import Conversation
from headrace.bench.serve.data import WORDS, Prompts, Source, Synthetic, conversations, replayed, text, trace


def first(source: Source, count: int, seed: int = 0) -> list[Conversation]:
    return list(islice(conversations(source, seed), count))


def words(prompt: object) -> list[str]:
    assert isinstance(prompt, str)
    return prompt.split()


def test_prompts_have_the_length_that_is_wanted_and_differ():
    found = first(Synthetic(tokens_in="100", tokens_out="7"), 20)
    assert {len(words(turn.prompt)) for (turn,) in found} == {100}
    assert {turn.max_tokens for (turn,) in found} == {7}
    assert len({turn.prompt for (turn,) in found}) == 20
    assert found == first(Synthetic(tokens_in="100", tokens_out="7"), 20)
    assert found != first(Synthetic(tokens_in="100", tokens_out="7"), 20, seed=1)


def test_words_may_be_more_than_a_token():
    assert len(text(Synthetic(per_word=2.0), 100, Random(0)).split()) == 50
    assert len(text(Synthetic(per_word=3.0), 1, Random(0)).split()) == 1


def test_groups_share_their_beginning():
    found = first(Synthetic(tokens_in="100", prefix=60, groups=3), 60)
    heads = {" ".join(words(turn.prompt)[:60]) for (turn,) in found}
    assert len(heads) == 3
    assert {len(words(turn.prompt)) for (turn,) in found} == {100}
    assert len({" ".join(words(turn.prompt)[60:]) for (turn,) in found}) == 60


def test_later_turns_are_thought_about_and_have_no_shared_beginning():
    (conversation,) = first(Synthetic(tokens_in="30", turns="3", think="2", prefix=10), 1)
    assert [turn.think for turn in conversation] == [0, 2, 2]
    assert [len(words(turn.prompt)) for turn in conversation] == [30, 30, 30]


def write(path: Path, items: list[Any], as_list: bool = False) -> str:
    path.write_text(json.dumps(items) if as_list else "\n".join(map(json.dumps, items)) + "\n")
    return str(path)


@pytest.mark.parametrize("as_list", [True, False])
def test_a_file_of_prompts(tmp_path: Path, as_list: bool):
    messages = [{"role": "user", "content": "hi"}]
    asked = [{"prompt": "p", "max_tokens": 5}, {"messages": messages, "output_tokens": 6}]
    items = ["just text", *asked, {"x": 1}, 7]
    source = Prompts(path=write(tmp_path / "p", items, as_list))
    found = first(source, 3)
    said = [(turn.prompt, turn.max_tokens) for (turn,) in found]
    assert said == [("just text", None), ("p", 5), (messages, 6)]
    assert {turn.max_tokens for (turn,) in first(Prompts(path=source.path, tokens_out="9"), 3)} == {9}


def test_a_file_begins_again_in_another_order(tmp_path: Path):
    source = Prompts(path=write(tmp_path / "p", [f"p{n}" for n in range(20)]))
    found = [turn.prompt for (turn,) in first(source, 40)]
    assert found[:20] == [f"p{n}" for n in range(20)]
    assert found[20:] != found[:20]
    assert sorted(map(str, found[20:])) == sorted(map(str, found[:20]))


@pytest.mark.parametrize("kind", ["sharegpt", "auto"])
def test_conversations_as_sharegpt_has_them(kind: Any, tmp_path: Path):
    said = [
        {"from": "human", "value": "one"},
        {"from": "gpt", "value": "a" * 40},
        {"from": "human", "value": "two"},
        {"from": "gpt", "value": "b"},
        {"from": "human", "value": "nobody answers"},
        "no part",
    ]
    odd: list[Any] = [{"conversations": "no list"}, {"conversations": ["one", "two"]}]
    items = [{"conversations": said}, {"conversations": []}, {"other": 1}, "x", *odd]
    source = Prompts(path=write(tmp_path / "s", items, True), kind=kind, think="3")
    (found,) = first(source, 1)
    assert [(turn.prompt, turn.max_tokens, turn.think) for turn in found] == [("one", 10, 0), ("two", 1, 3)]


def test_an_answer_that_is_no_text_is_as_long_as_it_is_written(tmp_path: Path):
    said = [{"from": "human", "value": "one"}, {"from": "gpt", "value": 12345678}]
    (found,) = first(Prompts(path=write(tmp_path / "s", [{"conversations": said}])), 1)
    assert [turn.max_tokens for turn in found] == [2]


def test_a_trace_says_when_and_how_long(tmp_path: Path):
    items = [
        {"timestamp": 3000, "input_length": 600, "output_length": 4, "hash_ids": [1, 2]},
        {"timestamp": 1000, "input_length": 600, "output_length": 5, "hash_ids": [1, 3]},
        {"timestamp": 1.5, "input_length": 5, "output_length": 0},
    ]
    found = trace(Prompts(path=write(tmp_path / "t", items), kind="trace"), 0)
    assert [at for at, _ in found] == [0.0, 0.5, 2.0]
    lengths = [len(words(turn.prompt)) for _, (turn,) in found]
    assert lengths == [600, 5, 600]
    one, other = (words(found[n][1][0].prompt) for n in (0, 2))
    assert one[:512] == other[:512], "the same block"
    assert one[512:] != other[512:]
    assert found[1][1][0].max_tokens == 1


def test_a_trace_may_be_sped_up_and_cut(tmp_path: Path):
    items = [{"timestamp": 1000 * n, "input_length": 5, "output_length": 5} for n in range(5)]
    source = Prompts(path=write(tmp_path / "t", items), kind="trace")

    def due(**load: Any) -> list[float]:
        return [at for at, _ in replayed(source, Load(replay=True, **load), 0)]

    assert due() == [0, 1, 2, 3, 4]
    assert due(rate=2.0, duration=1.5) == [0, 0.5, 1]
    assert due(requests=2) == [0, 1]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("{nonsense", "jsonl"),
        ("", "jsonl"),
        ('{"x": 1}\n', "jsonl"),
        ("[]", "sharegpt"),
        ('{"timestamp": 1}\n', "trace"),
        ("[]", "trace"),
        ("[1]", "trace"),
    ]
    + [
        (f'{{"timestamp": {stamp}, "input_length": {length}, "output_length": 4}}', "trace")
        for stamp, length in (('"abc"', 5), ('"nan"', 5), ("null", 5), (1, -5), (1, 10**12))
    ],
)
def test_a_file_that_is_of_no_use_is_refused(tmp_path: Path, content: str, kind: Any):
    (tmp_path / "f").write_text(content)
    with pytest.raises(Refused):
        first(Prompts(path=str(tmp_path / "f"), kind=kind), 1)


def test_the_words_are_words():
    assert len(WORDS) == len(set(WORDS)) == 250
    assert all(word.isalpha() and word.islower() for word in WORDS)
