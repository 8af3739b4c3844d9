"""Items of a response from an answer in which there is nothing to tell apart."""

from headrace.engine.stream import Update
from headrace.serve.output import Events, Output


def test_an_answer_without_parts():
    output = Output(None, Events(heard=False))
    for update in (Update("a"), Update(""), Update("b", finish="stop")):
        output.push(update)
    output.close()
    [item] = output.items
    assert (item["type"], item["status"], item["content"][0]["text"]) == ("message", "completed", "ab")


def test_nobody_listens():
    events = Events(heard=False)
    events.tell("x", a=1)
    assert events.take() == b""


def test_events_are_numbered():
    events = Events(heard=True)
    events.tell("x", name="n")
    events.tell_text("y", b'"delta":', 'é"', b"}")
    assert events.take().decode() == (
        'event: x\ndata: {"type":"x","sequence_number":0,"name":"n"}\n\n'
        'event: y\ndata: {"type":"y","sequence_number":1,"delta":"é\\""}\n\n'
    )
    assert events.take() == b""
