"""Every fault a person can act on, with its HTTP status and its exit code.

Fault
  Refused      400  exit 2   cannot be done as asked
    TooLong    400  exit 2   does not fit, not even alone
    UnknownName 404 exit 2   no such model, command, scheme or request
    Denied     401  exit 2   no key, or not a known one
    Forbidden  403  exit 2   not for whoever asks, or not from there
    TooLarge   413  exit 2   more bytes than are read
    BadCheckpoint 400 exit 2 the files are damaged, incomplete or not what they claim
  Busy         429  exit 1   not now
  Late         408  exit 1   the time a request was given ran out
  Unreachable  503  exit 2   a file or service outside this machine could not be had
  Broken       500  exit 1   our side; the request ended, the program lives
"""

from difflib import get_close_matches


class Fault(Exception):
    """What happened and what was expected (message), what to do (hint), which field is at fault (param)."""

    status = 500
    exit_code = 1
    hint = ""

    def __init__(self, message: str, *, param: str | None = None, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.param = param
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class Refused(Fault):
    """Cannot be done as asked; asking the same again will not help."""

    status = 400
    exit_code = 2


class TooLong(Refused):
    """The request could never fit, not even alone."""

    hint = "shorten the prompt, lower max_tokens, or raise memory.share or model.max_len"


class UnknownName(Refused):
    """A name that is not in the list of known ones."""

    status = 404

    @classmethod
    def among(cls, what: str, name: str, known: list[str], *, param: str | None = None) -> "UnknownName":
        """An error that lists the known names and proposes the nearest one."""
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return cls(f"unknown {what} {name!r}", param=param, hint=f"{hint}known: {', '.join(sorted(known))}")


class Denied(Refused):
    """No key was given, or not a known one."""

    status = 401


class Forbidden(Refused):
    """Not for whoever asks, or not from there."""

    status = 403


class TooLarge(Refused):
    """More bytes than are read."""

    status = 413


class BadCheckpoint(Refused):
    """The files are damaged, incomplete or not what they claim to be."""

    hint = "download or export the model again"


class Busy(Fault):
    """Not now: a queue is full. `retry_after` says in how many seconds to come back, `limit` which limit it was."""

    status = 429

    def __init__(
        self, message: str, *, retry_after: float = 1.0, hint: str | None = None, limit: str = "requests"
    ):
        super().__init__(message, hint=hint)
        self.retry_after, self.limit = retry_after, limit


class Late(Fault):
    """The time that a request was given ran out; what it had made until then was sent."""

    status = 408
    hint = "allow more time, or ask for fewer tokens"


class Unreachable(Fault):
    """A file or service outside this machine could not be had."""

    status = 503
    exit_code = 2


class Broken(Fault):
    """Something failed on our side; the request ended, the program lives."""
