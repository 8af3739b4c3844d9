"""An engine that says what a test wants it to say, token by token, over the tokenizer of a tiny model."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from time import sleep
from typing import Any

from headrace.engine.intake import Intake
from headrace.engine.request import Event, Logprobs, Request
from headrace.engine.start import Started
from headrace.text.tokenizer import Tokenizer
from tests import tiny


class Puppet:
    """Answers requests with `says`, in order, the last one for ever; each ends as the model ends, or at max_tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self.says: deque[str] = deque(["hello"])
        self.asked: list[Request] = []
        self.endless = False
        self._tokenizer = tokenizer
        self._todo: dict[str, tuple[Request, Sequence[int], int]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._todo)

    def prompt(self, n: int = -1) -> str:
        """What it was asked."""
        return self._tokenizer.decode(self.asked[n].prompt, skip_special_tokens=False)

    def add(self, request: Request) -> None:
        text = self.says.popleft() if len(self.says) > 1 else self.says[0]
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        self.asked.append(request)
        self._todo[request.id] = (request, ids, 0)

    def cancel(self, id: str) -> None:
        self._todo.pop(id, None)

    def step(self) -> list[Event]:
        if self.endless:
            sleep(0.002)  # or it would be at the end of its context before anybody could cancel it
        return [self._one(*one) for one in list(self._todo.values())]

    def _one(self, request: Request, ids: Sequence[int], n: int) -> Event:
        token = ids[n % len(ids)] if self.endless or n < len(ids) else tiny.EOS
        finish = "stop" if token == tiny.EOS else "length" if n + 1 == request.max_tokens else None
        if finish:
            del self._todo[request.id]
        else:
            self._todo[request.id] = (request, ids, n + 1)
        found = None if request.params.logprobs is None else Logprobs(-0.5, 1, [(token, -0.5), (5, -2.0)])
        return Event(request.id, token, finish, token if finish == "stop" else None, found)


def puppeteered(started: Started, template: str, special: Sequence[str] = (), **more: Any) -> Started:
    """A started model whose engine is a Puppet, with another chat template and some more special tokens."""
    tokenizer = Tokenizer.from_folder(started.plan.path)
    if special:
        tokenizer.backend.add_special_tokens(list(special))
        ids = [tokenizer.backend.token_to_id(text) for text in special]
        tokenizer.special_ids |= frozenset(ids)
    tokenizer.template_source = template
    intake = Intake(tokenizer, 4000, tokenizer.vocab_size, frozenset({tiny.EOS}))
    return replace(started, engine=Puppet(tokenizer), intake=intake, **more)  # type: ignore[arg-type]
