"""One line in the log for every request that ended or was refused: text or JSON, never what was said in it."""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import IO, Any, Literal

from headrace.base.errors import Fault
from headrace.serve.answer import Answer
from headrace.serve.record import Watcher

PLAIN = re.compile(r"[\w.:/@+-]{1,200}", re.ASCII)
LONGEST = 200
"""Characters shown of what a client chose: its name of the request, a model's name."""


class Lines(Watcher):
    """A watcher that writes. Values that clients choose are quoted, so that none can forge a line or a colour."""

    def __init__(self, form: Literal["text", "json"] = "text", to: IO[str] | None = None):
        self.form = form
        self.log = logging.Logger(
            "headrace.requests", logging.INFO
        )  # of its own: `--debug` does not change it
        out = logging.StreamHandler(to or sys.stderr)
        out.setFormatter(logging.Formatter("%(message)s"))
        self.log.addHandler(out)

    def refused(self, kind: str, fault: Fault, id: str) -> None:
        """What was wrong is said by its class and field; its message may quote the request."""
        self._write("refused", refusal(kind, fault, id))

    def ended(self, answer: Answer) -> None:
        self._write("ended", fields(answer))

    def _write(self, what: str, found: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        kept = {name: value for name, value in found.items() if value is not None}
        if self.form == "json":
            self.log.info(json.dumps({"time": now, "event": what, **kept}))
        else:
            self.log.info(" ".join([now, what, *(f"{name}={_shown(value)}" for name, value in kept.items())]))


def refusal(kind: str, fault: Fault, id: str) -> dict[str, Any]:
    """What the log and /debug/requests say of a request that was not taken."""
    cause = type(fault).__name__
    return {"id": id, "kind": kind, "cause": cause, "status": fault.status, "param": fault.param}


def fields(answer: Answer) -> dict[str, Any]:
    """An answer that is over as the log and /debug/requests say it; seconds, rounded to 0.1 ms."""
    name = None if answer.name is None else answer.name[:LONGEST]
    return {
        "id": answer.id[:LONGEST],
        "name": name,
        "kind": answer.kind,
        "cause": answer.cause,
        "status": answer.status,
        **{key: None if value is None else round(value, 4) for key, value in answer.spans._asdict().items()},
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached,
        "generated": answer.generated,
        "max_tokens": answer.max_tokens,
        "prompts": answer.prompts,
        "n": answer.n,
        "evictions": answer.evictions,
        "resumes": answer.resumes,
    }


def _shown(value: object) -> str:
    text = str(value)
    return text if PLAIN.fullmatch(text) else json.dumps(text)
