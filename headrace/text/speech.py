"""Tell thoughts, content and calls of tools apart in an answer, while it comes or when it is there."""

from collections.abc import Callable, Iterable

from headrace.text.json_text import Malformed
from headrace.text.parts import Content, Out, Part, Said, Tool, joined, random_id
from headrace.text.reasoning.think import Think
from headrace.text.tape import SPACE, Marks, Reading, Tape
from headrace.text.tools import ToolFormat


class Speech:
    """The parts of one answer. However the text is cut, the parts put together are the same.

    `begun` says that the prompt ends inside a thought. `thought_end` is the number of characters of the answer
    after which thinking was over: 0 where there was none, None while it goes on.
    """

    def __init__(
        self,
        format: ToolFormat | None = None,
        thinking: Think | None = None,
        *,
        tools: Iterable[Tool] = (),
        begun: bool = False,
        many: bool = True,
        thoughts: bool = True,
        new_id: Callable[[], str] | None = None,
    ):
        """`format` None: nothing is a call; `thinking` None: nothing is a thought.

        `many` False: calls after the first are dropped; `thoughts` False: so are thoughts.
        """
        self.thought_end: int | None = None
        self._format, self._thinking, self._begun = format, thinking, begun
        self._tools = {tool.name: tool for tool in tools}
        make = new_id or (format.new_id if format is not None else random_id)
        self._out = Out(calls=format is not None, many=many, thoughts=thoughts, new_id=make)
        self._tape = Tape()
        self._plain = False
        self._reading = self._read()

    @property
    def thinking(self) -> bool:
        """Whether what comes now is a thought."""
        return self._begun and self.thought_end is None

    def push(self, text: str) -> list[Part]:
        """The parts that are certain after `text`."""
        if self._plain:
            if text:
                self._out.content(text)
        else:
            self._tape.feed(text)
            self._advance()
        return self._out.drain()

    def finish(self) -> list[Part]:
        """The last parts: whatever was held back because it could have become something else."""
        self._tape.ended = True
        if not self._plain:
            self._advance()
        return self._out.drain(final=True)

    def whole(self, text: str) -> Said:
        """All of an answer at once. Use it on a fresh object."""
        return joined([*self.push(text), *self.finish()])

    def _advance(self) -> None:
        self._plain = next(self._reading, self) is self

    def _read(self) -> Reading[None]:
        """Generators end where only content can follow."""
        if self._thinking is not None:
            begins = self._begun or (yield from self._thinking.begins(self._tape, self._out))
            if begins:
                self._begun = True
                yield from self._thinking.read(self._tape, self._out)
        self.thought_end = self._tape.count if self._begun else 0
        if self._format is not None:
            yield from self._calls(self._format)
        elif rest := self._tape.rest():
            self._out.content(rest)

    def _calls(self, format: ToolFormat) -> Reading[None]:
        tape, out = self._tape, self._out
        starts, ends = Marks(*format.starts), Marks(*format.ends)
        if format.leads:
            yield from tape.run(SPACE, out.content)
            if (yield from tape.begins(*format.leads)):
                yield from self._attempt(format, ends)
        while (yield from tape.until(starts, out.content)):
            yield from self._attempt(format, ends)

    def _attempt(self, format: ToolFormat, ends: Marks) -> Reading[None]:
        """What looks like a call: one or several, or content after all."""
        tape, out = self._tape, self._out
        tape.keep()
        try:
            yield from format.read(tape, out, self._tools)
        except Malformed:
            if out.open:
                tape.take(len((yield from tape.until(ends, out.arguments))))
                out.close()
            else:
                out.content(tape.kept())
        tape.forget()


def parts_of(speech: Speech | None, text: str, ended: bool) -> list[Part]:
    """What more text adds to an answer, and its end if that is it. Without a reader all of it is content."""
    if speech is None:
        return [Content(text)] if text else []
    parts = speech.push(text) if text else []
    return parts + speech.finish() if ended else parts
