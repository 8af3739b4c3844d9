"""How models write calls of tools: one file per format, each with FORMATS, found by name."""

from collections.abc import Callable
from typing import Protocol

from headrace.text.parts import Out, Tools, random_id
from headrace.text.tape import Reading, Tape

Spell = Callable[[str], str]
"""Text as Lark source: a quoted string, with the tokenizer's special tokens by their ids."""


class ToolFormat(Protocol):
    """How a family of models writes calls.

    starts   texts that begin a call, wherever they come
    leads    texts that begin one only where nothing has been said before
    ends     texts that end one; what is left of a call that went wrong reaches as far as these
    tokens   all texts of the format that a tokenizer may have as special tokens
    own_ids  its templates refuse ids that are not like those of `new_id`
    """

    name: str
    starts: tuple[str, ...]
    leads: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    tokens: tuple[str, ...]
    own_ids: bool = False

    def read(self, tape: Tape, out: Out, tools: Tools) -> Reading[None]:
        """Read calls from a tape that stands at one of `starts` or `leads`.

        Raises Malformed where there is none, or where an open one breaks off; text read since `tape.keep`
        then becomes content, or arguments of the open call.
        """
        ...

    def grammar(self, tools: Tools, many: bool, spell: Spell) -> str:
        """Lark rules, for llguidance, of which `calls` is one call (`many`: or more) of these tools, nothing else.

        Schemas of arguments stand in them as they are in the tools.
        """
        ...

    def new_id(self) -> str:
        """An id for a call, as this family's templates accept them."""
        return random_id()
