"""Items of a response from an answer in which there is nothing to tell apart."""

from headrace.engine.stream import Update
from headrace.serve.output import EventWriter, Output


def test_an_answer_without_parts():
    output = Output(None, EventWriter(heard=False))
    for update in (Update("a"), Update(""), Update("b", finish="stop")):
        output.push(update)
    output.close()
    [item] = output.items
    assert (item["type"], item["status"], item["content"][0]["text"]) == ("message", "completed", "ab")
