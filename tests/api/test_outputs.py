"""Outputs made of a stream that is still running, or has no tokenizer."""

from headrace.api.outputs import Logprob, completion, prompt_table
from headrace.engine.request import Event, Logprobs, Request, SamplingParams
from headrace.engine.stream import Stream


def stream(**params) -> Stream:
    return Stream(Request(id="a", prompt=(1, 2, 3), params=SamplingParams(**params)), None)


def test_an_answer_on_its_way():
    one = stream()
    one.take(Event("a", 5))
    answer = completion(2, one, None)
    assert (answer.index, answer.token_ids, answer.finish_reason) == (2, [5], None)
    assert not answer.finished()
    assert (answer.logprobs, answer.cumulative_logprob) == (None, None)


def test_an_answer_is_a_copy():
    one = stream()
    one.take(Event("a", 5))
    before = completion(0, one, None)
    one.take(Event("a", 6, "length"))
    assert before.token_ids == [5]


def test_tables_hold_the_token_itself_once():
    one = stream(logprobs=2)
    one.take(Event("a", 5, logprobs=Logprobs(-2.0, 7, [(8, -0.5), (9, -1.0)])))
    one.take(Event("a", 8, logprobs=Logprobs(-0.5, 1, [(8, -0.5), (9, -1.0)])))
    answer = completion(0, one, None)
    assert answer.logprobs == [
        {5: Logprob(-2.0, 7), 8: Logprob(-0.5, 1), 9: Logprob(-1.0, 2)},
        {8: Logprob(-0.5, 1), 9: Logprob(-1.0, 2)},
    ]
    assert answer.cumulative_logprob == -2.5


def test_tables_of_the_prompt():
    assert prompt_table(stream(), None) is None
    one = stream(prompt_logprobs=0)
    assert prompt_table(one, None) == [None]
    one.take(Event("a", None, prompt_logprobs=[Logprobs(-1.0, 2, [])]))
    one.take(Event("a", None, prompt_logprobs=[Logprobs(-3.0, 4, [])]))
    assert prompt_table(one, None) == [None, {2: Logprob(-1.0, 2)}, {3: Logprob(-3.0, 4)}]
