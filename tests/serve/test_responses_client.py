"""/v1/responses as the openai package sees it."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from tests.serve.local import Running
from tests.serve.puppet import Puppet
from tests.serve.test_responses import CALL, WEATHER, puppet, say, server

__all__ = ["puppet", "server"]
openai = pytest.importorskip("openai")

TOOL: Any = WEATHER


class Colour(BaseModel):
    """What is to be parsed."""

    name: str


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def test_whole(client: Any, puppet: Puppet):
    say(puppet, "<think>\nhm\n</think>\n\nhello")
    made = client.responses.create(model="tiny", input="hi", instructions="be kind")
    assert made.output_text == "hello"
    assert made.status == "completed"
    assert [item.type for item in made.output] == ["reasoning", "message"]
    assert made.usage.output_tokens_details.reasoning_tokens > 0
    assert client.responses.retrieve(made.id).output_text == "hello"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_every_event_is_one_that_the_client_knows(client: Any, puppet: Puppet):
    say(puppet, f"<think>\nhm\n</think>\n\nLet me see.\n{CALL}")
    found = list(client.responses.create(model="tiny", input="hi", tools=[TOOL], stream=True))
    assert [event.sequence_number for event in found] == list(range(len(found)))
    for event in found:
        name = "".join(
            word.title() for word in event.type.removeprefix("response.").replace("_", ".").split(".")
        )
        assert type(event).__name__ == f"Response{name.replace('OutputText', 'Text')}Event"
        # every field has the type that the client says it has
        type(event).model_validate(event.to_dict())
    final = found[-1].response
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]


def test_the_stream_helper_and_the_call_goes_back(client: Any, puppet: Puppet):
    say(puppet, CALL, "sunny")
    with client.responses.stream(model="tiny", input="weather?", tools=[TOOL]) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    [call] = final.output
    assert (call.type, call.name, call.arguments) == ("function_call", "weather", '{"city": "Å"}')
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    made = client.responses.create(model="tiny", input=[result], previous_response_id=final.id, tools=[TOOL])
    assert made.output_text == "sunny"
    items = [{"role": "user", "content": "weather?"}, *[item.to_dict() for item in final.output], result]
    assert client.responses.create(model="tiny", input=items, tools=[TOOL]).output_text == "sunny"


def test_parsed(client: Any, puppet: Puppet):
    say(puppet, '{"name": "red"}')
    made = client.responses.parse(model="tiny", input="hi", text_format=Colour)
    assert made.output_parsed == Colour(name="red")


def test_in_the_background_and_cancelled(client: Any, puppet: Puppet):
    say(puppet, "x")
    puppet.endless = True
    made = client.responses.create(model="tiny", input="hi", background=True)
    assert made.status == "in_progress"
    assert client.responses.cancel(made.id).status == "cancelled"


def test_input_items(client: Any, puppet: Puppet):
    say(puppet, "x")
    made = client.responses.create(model="tiny", input=[{"role": "user", "content": "hi"}])
    [item] = client.responses.input_items.list(made.id)
    assert item.role == "user"
