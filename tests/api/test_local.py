"""An engine with the text side of its requests."""

from headrace.api.llm import LLM
from headrace.engine.request import SamplingParams


def ended(llm: LLM, id: str) -> list[str]:
    found = []
    while llm.local.engine.busy:
        found += [update.finish for one, update in llm.local.step() if one == id and update.finish]
    return found


def test_cancel_gives_the_last_update_once(llm: LLM):
    (request,) = llm.intake.requests("a", "ab", SamplingParams(max_tokens=100))
    stream = llm.local.submit(request)
    llm.local.step()
    update = llm.local.cancel("a")
    assert update is not None
    assert update.finish == stream.finish == "abort"
    assert llm.local.cancel("a") is None
    assert ended(llm, "a") == []


def test_cancel_of_a_stranger_is_nothing(llm: LLM):
    assert llm.local.cancel("nobody") is None


def test_of_a_whole_stream_the_first_token_and_the_end_are_told(llm: LLM):
    params = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0)
    streams, told = {}, []
    for whole in (True, False):
        (request,) = llm.intake.requests(str(whole), "ab", params)
        streams[whole] = llm.local.submit(request, whole)
    while llm.local.engine.busy:
        told += [(id, update.finish) for id, update in llm.local.step()]
    assert [finish for id, finish in told if id == "True"] == [None, "length"]
    assert len([id for id, _ in told if id == "False"]) == 40
    assert streams[True].text == streams[False].text
    assert streams[True].token_ids == streams[False].token_ids
