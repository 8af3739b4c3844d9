"""LangChain against a server: `python use_langchain.py URL`, in an environment with langchain-openai."""

import sys
from typing import Any, Literal

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel


class Verdict(BaseModel):
    """What to think of it."""

    good: bool
    colour: Literal["red", "green"]


@tool
def weather(city: Literal["Rome", "Oslo"]) -> str:
    """The weather in a city."""
    return f"rain in {city}"


def main(url: str) -> None:
    to: Any = {"model": "tiny", "base_url": f"{url}/v1", "api_key": "any", "max_retries": 0}
    chat = ChatOpenAI(temperature=0, max_tokens=12, **to)
    whole = chat.invoke("hi")
    assert isinstance(whole.content, str)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] <= 12
    pieces = list(chat.stream([HumanMessage([{"type": "text", "text": "hi"}])]))
    assert "".join(str(piece.content) for piece in pieces) == whole.content
    assert len(chat.batch(["a", "b", "c"])) == 3

    longer = ChatOpenAI(temperature=1, seed=1, max_tokens=400, **to)
    verdict = longer.with_structured_output(Verdict).invoke("is it good?")
    assert isinstance(verdict, Verdict)

    called = longer.bind_tools([weather], tool_choice="any", strict=True, parallel_tool_calls=False).invoke(
        "weather?"
    )
    assert isinstance(called, AIMessage), called
    assert called.tool_calls, called
    call = called.tool_calls[0]
    assert call["name"] == "weather"
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    assert chat.invoke([HumanMessage("weather?"), called, result]).content is not None

    text = OpenAI(temperature=0, max_tokens=6, **to)
    assert "".join(text.stream("abc")) == text.invoke("abc")
    sys.stdout.write("langchain: ok\n")


if __name__ == "__main__":
    main(sys.argv[1])
