"""LiteLLM against a server: `python use_litellm.py URL`, in an environment with litellm."""

import sys

import litellm


def main(url: str) -> None:
    to = {
        "model": "hosted_vllm/tiny",
        "api_base": f"{url}/v1",
        "num_retries": 0,
        "temperature": 0,
        "max_tokens": 8,
    }
    hi = [{"role": "user", "content": "hi"}]
    whole = litellm.completion(messages=hi, **to)
    assert whole.usage.completion_tokens <= 8
    pieces = litellm.completion(messages=hi, stream=True, stream_options={"include_usage": True}, **to)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    schema = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    made = litellm.completion(messages=hi, response_format=form, **{**to, "max_tokens": 60})
    assert '"n"' in made.choices[0].message.content
    again = litellm.text_completion(
        prompt="abc", **{**to, "model": "text-completion-openai/tiny", "api_key": "any"}
    )
    assert again.choices[0].text is not None
    said = ""
    try:
        litellm.completion(messages=hi, **{**to, "temperature": 9})
    except litellm.BadRequestError as refused:
        said = str(refused)
    assert "temperature" in said
    sys.stdout.write("litellm: ok\n")


if __name__ == "__main__":
    main(sys.argv[1])
