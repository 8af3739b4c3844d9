"""What a sequence knows of itself."""

from headrace.engine.request import Request, SamplingParams
from headrace.engine.sequence import Sequence


def sequence(prompt: tuple[int, ...] = (1, 2, 3), salt: str = "", **params) -> Sequence:
    asked = SamplingParams(**params)
    return Sequence(
        Request(
            id="a",
            prompt=prompt,
            params=asked,
            max_tokens=asked.max_tokens or 16,
            stop_ids=frozenset({9}),
            salt=salt,
        ),
        order=0,
        groups=2,
    )


def test_it_begins_with_its_prompt_all_of_it_to_be_computed():
    seq = sequence()
    assert (seq.tokens, seq.length, seq.pending) == ([1, 2, 3], 3, 3)
    assert (seq.blocks, seq.passed) == ([[], []], [0, 0])


def test_a_sample_on_its_way_counts_until_the_last_token_is_on_its():
    seq = sequence(max_tokens=2)
    seq.issued, seq.owed = 3, 1
    assert (seq.length, seq.pending) == (4, 1)
    seq.issued, seq.owed = 4, 2
    assert seq.pending == 0


def test_the_longest_answer_and_the_stop_token_end_it():
    seq = sequence(max_tokens=2)
    seq.append(4)
    assert seq.finished is None
    seq.append(5)
    assert seq.finished == "length"
    seq = sequence(max_tokens=1)
    seq.append(9)
    assert seq.finished == "stop"


def test_no_stop_token_ends_it_before_min_tokens():
    seq = sequence(min_tokens=2)
    seq.append(9)
    assert seq.finished is None
    seq.append(9)
    assert seq.finished == "stop"


def test_names_of_full_blocks_depend_on_all_before_and_on_the_salt():
    seq = sequence(prompt=(1, 2, 3, 4, 5))
    names = list(seq.name_blocks(2))
    assert len(set(names)) == 2
    seq.append(6)
    assert seq.name_blocks(2)[:2] == names
    assert len(seq.keys) == 3
    other = sequence(prompt=(0, 2, 3, 4)).name_blocks(2)
    salted = sequence(prompt=(1, 2, 3, 4), salt="s").name_blocks(2)
    assert not set(names) & {*other, *salted}
    assert sequence(prompt=(1, 2, 3, 4)).name_blocks(2) == names
