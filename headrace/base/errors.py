"""Every fault a person can act on, with its HTTP status and its exit code.

Fault
  Refused      400  exit 2   cannot be done as asked
    TooLong    400  exit 2   does not fit, not even alone
    UnknownName 404 exit 2   no such model, command, scheme or request
    BadCheckpoint 400 exit 2 the files are damaged, incomplete or not what they claim
  Busy         429  exit 1   not now
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


class BadCheckpoint(Refused):
    """The files are damaged, incomplete or not what they claim to be."""

    hint = "download or export the model again"


class Busy(Fault):
    """Not now: a queue is full. `retry_after` says in how many seconds to come back."""

    status = 429

    def __init__(self, message: str, *, retry_after: float = 1.0, hint: str | None = None):
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class Unreachable(Fault):
    """A file or service outside this machine could not be had."""

    status = 503
    exit_code = 2


class Broken(Fault):
    """Something failed on our side; the request ended, the program lives."""
