"""Thoughts between an opening and a closing tag, at the start of an answer."""

from headrace.text.parts import Out
from headrace.text.tape import SPACE, Marks, Reading, Tape


class Think:
    """One pair of tags. `tokens` are texts that a tokenizer may have as special tokens."""

    def __init__(self, opens: str, closes: str):
        self.opens, self.closes = opens, closes
        self.tokens = (opens, closes)
        self._closes = Marks(closes)

    def fits(self, source: str) -> bool:
        """Whether a chat template's source speaks of these tags."""
        return self.opens in source or self.closes in source

    def begun(self, prompt: str, continued: bool = False) -> bool:
        """Whether the answer to `prompt` begins inside a thought, because the template has opened one.

        `continued`: the prompt ends with a message that the model itself is to go on with.
        """
        if continued:
            return prompt.rfind(self.opens) > prompt.rfind(self.closes)
        return prompt.rstrip().endswith(self.opens)

    def begins(self, tape: Tape, out: Out) -> Reading[bool]:
        """Read the opening tag, if the answer begins with it."""
        blank: list[str] = []
        yield from tape.run(SPACE, blank.append)
        if (yield from tape.accept(self.opens)):
            return True
        out.content("".join(blank))
        return False

    def read(self, tape: Tape, out: Out) -> Reading[None]:
        """Read a thought and its closing tag."""
        tape.take(len((yield from tape.until(self._closes, out.thought))))
        out.thought_ends()


FORMATS = (
    Think("<think>", "</think>"),
    Think("<thinking>", "</thinking>"),
    Think("<seed:think>", "</seed:think>"),
    Think("[THINK]", "[/THINK]"),
)
