"""LLM: vLLM's call shapes, streams, and nothing left behind whatever happens."""

from itertools import count
from pathlib import Path

import pytest

import headrace
from headrace.api.llm import LLM
from headrace.api.outputs import CompletionOutput, Logprob, RequestOutput
from headrace.base.config import Config
from headrace.base.errors import Refused, TooLong, UnknownName
from headrace.engine.request import SamplingParams
from headrace.nn.decoder import Decoder
from headrace.text.formats import detect
from headrace.text.template import ChatTemplate
from tests import tiny

GREEDY = SamplingParams(temperature=0, max_tokens=6)


def text_of(outputs: list[RequestOutput]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


# -- prompts and params ----------------------------------------------------------------------------------------


def test_one_prompt_in_every_form_gives_the_same(llm: LLM):
    ids = llm.get_tokenizer().encode("ab")
    forms = ["ab", {"prompt": "ab"}, {"prompt_token_ids": ids}, ids, ["ab"], [{"prompt": "ab"}], [ids]]
    outputs = [llm.generate(form, GREEDY, use_tqdm=False) for form in forms]
    assert all(len(output) == 1 for output in outputs)
    assert len({output[0].outputs[0].text for output in outputs}) == 1
    assert [output[0].prompt for output in outputs] == ["ab", "ab", None, None, "ab", "ab", None]
    assert all(output[0].prompt_token_ids == ids for output in outputs)


def test_prompts_of_mixed_forms_keep_their_order(llm: LLM):
    mixed = llm.generate(["a", {"prompt": "b"}, llm.get_tokenizer().encode("c")], GREEDY, use_tqdm=False)
    single = [llm.generate(prompt, GREEDY, use_tqdm=False)[0] for prompt in "abc"]
    assert text_of(mixed) == text_of(single)
    assert len({output.request_id for output in mixed}) == 3


def test_params_for_each(llm: LLM):
    params = [SamplingParams(temperature=0, max_tokens=n) for n in (1, 2, 3)]
    outputs = llm.generate(["a", "b", "c"], params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2, 3]
    with pytest.raises(Refused, match="3 prompts and 2 SamplingParams"):
        llm.generate(["a", "b", "c"], params[:2])


def test_defaults_are_used_where_none_are_given(llm: LLM):
    assert llm.get_default_sampling_params() == SamplingParams()
    (output,) = llm.generate("a", use_tqdm=False)
    assert len(output.outputs[0].token_ids) <= 16


def test_nothing_asked_nothing_given(llm: LLM):
    assert llm.generate([]) == []
    assert llm.generate([], []) == []
    assert llm.chat([]) == []


def test_fields_of_an_output(llm: LLM):
    (output,) = llm.generate("ab", SamplingParams(temperature=0, max_tokens=5, logprobs=2), use_tqdm=False)
    (answer,) = output.outputs
    assert isinstance(answer, CompletionOutput)
    assert (output.finished, output.prompt, output.num_cached_tokens) == (True, "ab", 0)
    assert (answer.index, answer.finish_reason, answer.stop_reason) == (0, "length", None)
    assert answer.finished()
    assert answer.text == llm.get_tokenizer().decode(answer.token_ids)
    assert len(answer.logprobs) == 5
    for token, table in zip(answer.token_ids, answer.logprobs, strict=True):
        assert isinstance(table[token], Logprob)
        assert table[token].rank == 1
        assert table[token].decoded_token == llm.get_tokenizer().decode([token])
        assert len(table) == 2
    assert answer.cumulative_logprob == pytest.approx(
        sum(table[token].logprob for token, table in zip(answer.token_ids, answer.logprobs, strict=True))
    )
    times = output.metrics
    assert times.arrival_time <= times.first_token_time <= times.finished_time


def test_a_drawn_token_outside_of_the_likeliest_is_in_its_table(llm: LLM):
    params = SamplingParams(temperature=2.0, seed=1, max_tokens=20, logprobs=1)
    (output,) = llm.generate("ab", params, use_tqdm=False)
    tables = output.outputs[0].logprobs
    ranks = [table[token].rank for token, table in zip(output.outputs[0].token_ids, tables, strict=True)]
    assert max(ranks) > 1
    assert {len(table) for table in tables} <= {1, 2}


def test_prompt_logprobs(llm: LLM, folder: Path):
    (output,) = llm.generate("abcd", SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    ids = output.prompt_token_ids
    assert output.prompt_logprobs[0] is None
    rows = tiny.logits(tiny.decoder(folder), ids).log_softmax(-1)
    found = [table[token].logprob for token, table in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
    assert found == pytest.approx(
        [row[token].item() for token, row in zip(ids[1:], rows, strict=False)], abs=1e-4
    )


def test_several_answers(llm: LLM):
    params = SamplingParams(n=3, seed=5, max_tokens=8, temperature=1.5)
    first, second = llm.generate(["ab", "ab"], params, use_tqdm=False)
    assert [answer.index for answer in first.outputs] == [0, 1, 2]
    assert len({answer.text for answer in first.outputs}) == 3
    assert [a.token_ids for a in first.outputs] == [a.token_ids for a in second.outputs]
    for i, answer in enumerate(first.outputs):
        each = SamplingParams(seed=5 + i, max_tokens=8, temperature=1.5)
        assert text_of(llm.generate("ab", each, use_tqdm=False)) == [answer.text]


def test_greedy_is_greedy(llm: LLM, folder: Path):
    model: Decoder = tiny.decoder(folder)
    prompts = [[5 + i, 6, 7] for i in range(20)]  # more than there are rows
    for prompt, output in zip(prompts, llm.generate(prompts, GREEDY, use_tqdm=False), strict=True):
        tiny.assert_greedy(model, prompt, output.outputs[0].token_ids)


def test_a_stop_string(llm: LLM):
    (plain,) = llm.generate("ab", SamplingParams(temperature=0, max_tokens=20), use_tqdm=False)
    text = plain.outputs[0].text
    stop = text[4:6]
    (cut,) = llm.generate("ab", SamplingParams(temperature=0, max_tokens=20, stop=stop), use_tqdm=False)
    assert (cut.outputs[0].finish_reason, cut.outputs[0].stop_reason) == ("stop", stop)
    assert cut.outputs[0].text == text[: text.index(stop)]


def test_salts_and_the_prefix_cache(llm: LLM):
    prompt = "a" * 40
    calls = [{"prompt": prompt}, {"prompt": prompt}, {"prompt": prompt, "cache_salt": "s"}]
    cached = [llm.generate(call, GREEDY, use_tqdm=False)[0].num_cached_tokens for call in calls]
    assert cached == [0, 32, 0]
    llm.reset_prefix_cache()
    assert llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens == 0
    with pytest.raises(Refused, match="cache_salt is 5"):
        llm.generate({"prompt": prompt, "cache_salt": 5})


def test_priorities(folder: Path):
    llm = LLM(str(folder), **tiny.SMALL | {"max_num_seqs": 1, "scheduling_policy": "priority"})
    outputs = llm.generate(["a", "b", "c"], GREEDY, use_tqdm=False, priority=[2, 1, 0])
    ended = [output.metrics.finished_time for output in outputs]
    assert ended[2] < ended[1] < ended[0]
    with pytest.raises(Refused, match="2 prompts and 1 priorities"):
        llm.generate(["a", "b"], GREEDY, priority=[1])


# -- chat ------------------------------------------------------------------------------------------------------


def test_chat_of_one_and_of_several(llm: LLM):
    talk = [{"role": "user", "content": "hi"}]
    (one,) = llm.chat(talk, GREEDY, use_tqdm=False)
    both = llm.chat([talk, talk], GREEDY, use_tqdm=False)
    assert one.prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert one.prompt_token_ids == llm.get_tokenizer().encode(one.prompt) == llm.render(talk)
    assert text_of(both) == [one.outputs[0].text] * 2


def test_the_options_of_a_chat(llm: LLM):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well"}]
    (output,) = llm.chat(talk, GREEDY, use_tqdm=False, continue_final_message=True)
    assert output.prompt.endswith("assistant\nwell")
    (output,) = llm.chat(talk[:1], GREEDY, use_tqdm=False, add_generation_prompt=False)
    assert output.prompt.endswith("hi<|im_end|>\n")
    (output,) = llm.chat(talk[:1], GREEDY, use_tqdm=False, chat_template_kwargs={"mood": "grim"})
    assert output.prompt.endswith("assistant\n(grim)")
    with pytest.raises(Refused, match="messages"):
        llm.chat(talk[:1], GREEDY, chat_template_kwargs={"messages": []})
    with pytest.raises(Refused, match="no place for tools"):
        llm.chat(talk[:1], GREEDY, tools=[{"type": "function"}])


@pytest.mark.parametrize("messages", ["hi", {"role": "user"}, [["hi"]], [{"content": "x"}], [[]]])
def test_messages_that_are_none(llm: LLM, messages):
    with pytest.raises(Refused):
        llm.chat(messages, GREEDY)


# -- streams ---------------------------------------------------------------------------------------------------


def test_a_stream_gives_the_same_as_a_call(llm: LLM):
    updates = list(llm.stream("ab", GREEDY))
    assert (
        "".join(update.text for update in updates) == text_of(llm.generate("ab", GREEDY, use_tqdm=False))[0]
    )
    assert [update.finish for update in updates] == [None] * 5 + ["length"]


def test_a_closed_stream_ends_its_request(llm: LLM):
    stream = llm.stream("ab", SamplingParams(max_tokens=100))
    next(stream)
    assert llm.local.engine.busy
    stream.close()
    assert not llm.local.engine.busy


def test_a_stream_outlives_other_calls_and_other_streams(llm: LLM):
    expected = {prompt: text_of(llm.generate(prompt, GREEDY, use_tqdm=False))[0] for prompt in "abc"}
    first, second = llm.stream("a", GREEDY), llm.stream("b", GREEDY)
    texts = [next(first).text, next(second).text]
    assert text_of(llm.generate("c", GREEDY, use_tqdm=False)) == [expected["c"]]
    texts[1] += "".join(update.text for update in second)
    texts[0] += "".join(update.text for update in first)
    assert texts == [expected["a"], expected["b"]]


def test_a_stream_is_one_answer(llm: LLM):
    with pytest.raises(Refused, match="a stream is one answer"):
        next(llm.stream("a", SamplingParams(n=2)))


# -- what goes wrong -------------------------------------------------------------------------------------------


def break_third_step(llm: LLM, patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    runner = llm.local.engine.runner
    run, steps = runner.run, count(1)

    def fail(step):
        if next(steps) == 3:
            raise error
        return run(step)

    patch.setattr(runner, "run", fail)


def test_an_interruption_leaves_nothing_running(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    expected = text_of(llm.generate(["a", "b"], GREEDY, use_tqdm=False))
    with monkeypatch.context() as patch:
        break_third_step(llm, patch, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["a", "b"] * 10, GREEDY, use_tqdm=False)
    assert not llm.local.streams
    assert text_of(llm.generate(["a", "b"], GREEDY, use_tqdm=False)) == expected


def test_a_step_that_fails_once_is_made_again(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    expected = text_of(llm.generate(["a", "b"], GREEDY, use_tqdm=False))
    break_third_step(llm, monkeypatch, RuntimeError)
    assert text_of(llm.generate(["a", "b"], GREEDY, use_tqdm=False)) == expected


def test_an_error_ends_an_open_stream(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    stream = llm.stream("ab", GREEDY)
    next(stream)
    with monkeypatch.context() as patch:
        patch.setattr(llm.local.engine.runner, "run", lambda step: 1 / 0)
        (output,) = llm.generate("c", GREEDY, use_tqdm=False)
    assert output.outputs[0].finish_reason == "error"
    (last,) = stream
    assert last.finish == "error"


def test_one_bad_prompt_refuses_all_before_any_runs(llm: LLM):
    for bad, fault in (("", Refused), ([9999], Refused), ("x" * 300, TooLong), (None, Refused)):
        with pytest.raises(fault):
            llm.generate(["a", bad], GREEDY)
    for bad in (5, None, b"ab"):
        with pytest.raises(Refused):
            llm.generate(bad, GREEDY)


def test_settings_that_are_none(folder: Path):
    with pytest.raises(Refused, match="either config or single settings"):
        LLM(str(folder), config=Config(), seed=1)
    with pytest.raises(UnknownName, match="max_modle_len"):
        LLM(str(folder), max_modle_len=3)


def test_a_config_and_a_path(folder: Path):
    llm = LLM(folder, config=tiny.config(folder, max_model_len=77))
    assert llm.plan.max_len == 77
    assert llm.plan.path == folder


def test_progress_is_told(folder: Path):
    told = []
    LLM(folder, **tiny.SMALL, progress=lambda what, done: told.append((what, done)))
    assert {what for what, _ in told} == {"loading weights"}
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert told[-1][1] == 1


def test_the_bar_is_drawn_on_a_terminal(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    llm.generate(["a", "b"], GREEDY)
    drawn = capsys.readouterr()
    assert "generating" in drawn.err
    assert drawn.out == ""
    llm.generate(["a", "b"], GREEDY, use_tqdm=False)
    assert capsys.readouterr() == ("", "")


# -- structured output -------------------------------------------------------------------------------------------


def test_answers_have_the_form_that_is_asked_for(llm: LLM):
    wanted = [
        SamplingParams(
            max_tokens=40, seed=1, structured_outputs=headrace.StructuredOutputsParams(regex="[ab]{5}")
        ),
        SamplingParams(
            max_tokens=40, seed=1, guided_decoding=headrace.GuidedDecodingParams(choice=["no", "yes"])
        ),
        GREEDY,
    ]
    words, choice, free = text_of(llm.generate(["x"] * 3, wanted, use_tqdm=False))
    assert set(words) <= {"a", "b"}
    assert len(words) == 5
    assert choice in ("no", "yes")
    assert free == text_of(llm.generate("x", GREEDY, use_tqdm=False))[0]


def test_a_form_that_cannot_be_is_refused_before_anything_runs(llm: LLM):
    with pytest.raises(Refused, match="unclosed") as caught:
        llm.generate(["x", "y"], [GREEDY, SamplingParams(structured_outputs={"regex": "("})], use_tqdm=False)  # pyright: ignore[reportArgumentType]
    assert caught.value.param == "structured_outputs"
    assert not llm.local.engine.busy


def test_a_chat_is_free_until_its_thoughts_end(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    tokenizer = llm.get_tokenizer()
    template = "{{ messages[0].content }}<think>{% if False %}</think>{% endif %}"
    monkeypatch.setattr(tokenizer, "template", ChatTemplate(template))
    monkeypatch.setitem(tokenizer.__dict__, "formats", detect(tokenizer.template))
    (say,) = (tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "z")
    params = SamplingParams(max_tokens=9, logit_bias={say: 100}, structured_outputs={"regex": "[ab]+"})  # pyright: ignore[reportArgumentType]
    assert text_of(llm.chat([{"role": "user", "content": "x"}], params, use_tqdm=False)) == ["z" * 9]
