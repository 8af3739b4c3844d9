"""The small endpoints: models, tokens, what a body would become, whether the server lives and how much it does."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from headrace import __version__
from headrace.base.errors import Refused, UnknownName, Unreachable
from headrace.engine.dialect import chat_ids, switch
from headrace.engine.intake import Intake
from headrace.engine.reply import Json
from headrace.serve import schema
from headrace.serve.ask import Asked, as_json, length, of, read_body
from headrace.serve.chat import CHAT
from headrace.serve.completions import COMPLETIONS
from headrace.serve.schema import route

MOST_TEXT = 1 << 21
"""Characters that are tokenized for the sake of the tokens alone; that takes some seconds."""

router = APIRouter()


# -- models -------------------------------------------------------------------------------------------------------


@router.get("/v1/models", **route("models", schema.ModelList))
async def models(request: Request) -> Response:
    """The models that may be asked for: one, under each of its names."""
    front, _ = of(request)
    return as_json({"object": "list", "data": [_model(front.facts, name) for name in front.facts.served]})


@router.get("/v1/models/{name:path}", **route("models", schema.Model, 404))
async def model(request: Request, name: str) -> Response:
    """One of them."""
    front, _ = of(request)
    if name not in front.facts.served:
        raise UnknownName.among("model", name[:200], list(front.facts.served), param="model")
    return as_json(_model(front.facts, name))


def _model(facts: Any, name: str) -> Json:
    permission = {
        "id": f"modelperm-{facts.created}",
        "object": "model_permission",
        "created": facts.created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": facts.created,
        "owned_by": "headrace",
        "root": facts.model,
        "parent": None,
        "max_model_len": facts.max_len,
        "permission": [permission],
    }


# -- tokens -------------------------------------------------------------------------------------------------------


@router.post("/tokenize", **route("tokens", schema.Tokens, body="TokenizeRequest"))
async def tokenize(request: Request) -> Response:
    """The token ids of a text, or of messages as the chat template writes them."""
    front, settings = of(request)
    body, _ = await read_body(request)
    facts, intake, shown = front.facts, front.intake, switch(body, "return_token_strs")

    def made() -> Response:
        ids = _ids(body, intake)
        strings = [intake.text_tokenizer.id_to_piece(id) or "" for id in ids] if shown else None
        found = {"count": len(ids), "max_model_len": facts.max_len, "tokens": ids, "token_strs": strings}
        return as_json(found)

    return await front.off_loop(length(request, settings), made)


def _ids(body: Json, intake: Intake) -> list[int]:
    if body.get("messages") is not None:
        return chat_ids(body, intake)
    prompt, special = body.get("prompt"), switch(body, "add_special_tokens", True)
    if not isinstance(prompt, str):
        raise Refused("prompt is no text; expected text, or messages", param="prompt")
    if len(prompt) > MOST_TEXT:
        raise Refused(f"prompt has {len(prompt)} characters; expected at most {MOST_TEXT}", param="prompt")
    return intake.text_tokenizer.encode(prompt, add_special_tokens=special)


@router.post("/detokenize", **route("tokens", schema.Text, body="DetokenizeRequest"))
async def detokenize(request: Request) -> Response:
    """The text of token ids, special tokens included."""
    front, settings = of(request)
    body, _ = await read_body(request)
    vocab, intake = front.facts.vocab, front.intake
    return await front.off_loop(
        length(request, settings), lambda: as_json({"prompt": _text(body.get("tokens"), vocab, intake)})
    )


def _text(tokens: object, vocab: int, intake: Intake) -> str:
    if not isinstance(tokens, list):
        raise Refused("tokens is no list; expected a list of token ids", param="tokens")
    if wrong := [token for token in tokens if type(token) is not int or not 0 <= token < vocab]:
        raise Refused(
            f"tokens has {str(wrong[0])[:60]}; expected whole numbers from 0 to {vocab - 1}", param="tokens"
        )
    return intake.text_tokenizer.decode(tokens, False)


@router.get("/tokenizer_info", **route("tokens", schema.TokenizerFacts, 400))
async def tokenizer_info(request: Request) -> Response:
    """The special tokens and the chat template, for clients that build prompts themselves."""
    front, _ = of(request)
    tokenizer = front.intake.text_tokenizer
    roles = ("bos_token", "eos_token", "pad_token", "unk_token")
    return as_json(
        {
            **{role: tokenizer.special_tokens.get(role) for role in roles},
            "chat_template": tokenizer.template_source,
            "tokenizer_class": type(tokenizer).__name__,
            "model_max_length": front.facts.max_len,
            "vocab_size": front.facts.vocab,
        }
    )


# -- what a body would become -------------------------------------------------------------------------------------


@router.post("/v1/chat/completions/render", **route("tokens", schema.Rendered, body="ChatRequest"))
async def render_chat(request: Request) -> Response:
    """What the engine would be given for this body; nothing is generated."""
    return as_json(_rendered(request, await CHAT.asked(request))[0])


@router.post("/v1/completions/render", **route("tokens", schema.RenderedList, body="CompletionRequest"))
async def render_completion(request: Request) -> Response:
    """What the engine would be given for this body, one entry per prompt; nothing is generated."""
    return as_json(_rendered(request, await COMPLETIONS.asked(request)))


def _rendered(request: Request, asked: Asked) -> list[Json]:
    front, _ = of(request)
    ask, tokenizer = asked.ask, front.intake.tokenizer
    each = len(asked.requests) // len(ask.prompts)
    return [
        {
            "request_id": asked.id if len(ask.prompts) == 1 else f"{asked.id}-{n}",
            "model": asked.model,
            "token_ids": list(prompt),
            "features": None,
            "prompt": tokenizer.decode(prompt, skip_special_tokens=False) if tokenizer is not None else None,
            "sampling_params": ask.params,
            "max_tokens": asked.requests[n * each].max_tokens,
            "stream": ask.stream,
            "priority": ask.priority,
            "cache_salt": ask.salt or None,
        }
        for n, prompt in enumerate(ask.prompts)
    ]


# -- the server ---------------------------------------------------------------------------------------------------


@router.get("/version", **route("server", schema.Version))
async def version() -> Response:
    """The version of Headrace."""
    return as_json({"version": __version__})


@router.get("/health/live", response_class=Response, tags=["server"])
@router.head("/health/live", include_in_schema=False)
async def live() -> Response:
    """Whether this process answers. Needs no key."""
    return Response()


async def ready(request: Request) -> Response:
    """Whether requests are welcome: the model is loaded, the engine makes progress, and nobody is shutting down."""
    front, _ = of(request)
    if not front.ready:
        raise Unreachable(
            "not ready: the model is loading, the engine is restarting, or the server is draining"
        )
    return Response()


for path, methods in (("/health", ["GET"]), ("/health/ready", ["GET"]), ("/ping", ["GET", "POST"])):
    for method in methods:
        name, said = f"ready {method} {path}", route("server", None)
        router.add_api_route(path, ready, methods=[method], response_class=Response, name=name, **said)
    router.add_api_route(path, ready, methods=["HEAD"], include_in_schema=False)


@router.get("/load", **route("server", schema.Load))
async def load(request: Request) -> Response:
    """How many requests this process is answering now."""
    front, _ = of(request)
    return as_json({"server_load": len(front.answers)})
