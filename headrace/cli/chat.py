"""A conversation in the terminal."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.base.errors import Fault, Refused
from headrace.cli._answer import answer, write_out
from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli._load import load
from headrace.cli._print import tell
from headrace.cli._sampling import Sampling, SamplingFlags
from headrace.engine.request import SamplingParams

if TYPE_CHECKING:
    from headrace.api.llm import LLM

HELP = """\
  /system TEXT   set the system message; without TEXT: show it
  /reset         forget the conversation, keep the system message
  /help          this
  /exit          leave; so does Ctrl-D
Enter sends; Alt-Enter, or a backslash at the end of the line, begins another line. Ctrl-C stops an answer."""
ROOM = 256
"""Tokens kept free for an answer when the oldest turns are dropped, a quarter of the context at the most."""

Message = dict[str, Any]


def run(
    *, system: str | None = None, sampling: SamplingFlags = Sampling(), engine: EngineFlags = Engine()
) -> int:
    """Talk with a model.

    It remembers the conversation for as long as it fits its context. Enter sends, Alt-Enter or a backslash at the
    end of a line begins another one. Ctrl-C stops an answer, Ctrl-D leaves. /help in the chat lists its commands.
    Standard input may be a pipe: one message per line.

    Parameters
    ----------
    system
        the system message
    """
    sampling.params(SamplingParams())  # what cannot be is refused before a model is loaded
    llm = load(engine.config)
    llm.intake.text_tokenizer.chat_template()  # refused here, not at the first message, where there is none
    talk = Conversation(llm, sampling.params(llm.defaults), system)
    listen = _terminal() if sys.stdin.isatty() and sys.stdout.isatty() else _piped
    if sys.stdin.isatty():
        tell(f"{llm.plan.model}, {llm.plan.max_len} tokens of context; /help for help, Ctrl-D leaves")
    while (said := listen()) is not None:
        if not said.strip():
            continue
        if said.startswith("/"):
            if not _obey(talk, said):
                break
            continue
        try:
            talk.say(said)
        except Fault as fault:
            tell(f"error: {fault.message}" + (f"\nhint: {fault.hint}" if fault.hint else ""))
    return 0


@dataclass
class Conversation:
    """What has been said, and how the model goes on."""

    llm: "LLM"
    params: "SamplingParams"
    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Add a message and write the answer. Raises a Fault, and forgets the message, if it cannot be answered."""
        self.turns.append({"role": "user", "content": text})
        try:
            got = answer(self.llm, self._prompt(), self.params, write_out)
        except Fault:
            self.turns.pop()
            raise
        write_out("\n")
        self.turns.append({"role": "assistant", "content": got.text})
        if got.finish == "abort":
            tell("[stopped]")
        elif got.finish == "length":
            tell(f"[cut at {got.tokens} tokens; --max-tokens sets the limit]")

    def _prompt(self) -> list[int]:
        """Token ids of all that still fits, oldest turns dropped for good."""
        longest = self.llm.plan.max_len
        room = longest - min(ROOM, longest // 4)
        opening = [{"role": "system", "content": self.system}] if self.system else []
        dropped = 0
        while len(ids := self.llm.render([*opening, *self.turns])) > room and len(self.turns) > 1:
            del self.turns[:2]  # a question and its answer: templates want them to alternate
            dropped += 2
        if dropped:
            tell(
                f"[the conversation is longer than the context: its oldest {dropped} messages are forgotten]"
            )
        return ids


def _obey(talk: Conversation, said: str) -> bool:
    """Do what a line with a slash says; False to leave."""
    word, _, rest = said.strip().partition(" ")
    match word:
        case "/exit" | "/quit":
            return False
        case "/help":
            tell(HELP)
        case "/reset":
            talk.turns.clear()
            tell("[forgotten]")
        case "/system" if rest.strip():
            talk.system = rest.strip()
            tell("[the system message is set]")
        case "/system":
            tell(talk.system or "[there is no system message]")
        case _:
            tell(f"unknown command {word}; a message that begins with a slash: put a space before it\n{HELP}")
    return True


def _piped() -> str | None:
    """The next message of standard input, lines that end with a backslash joined; None at the end."""
    lines: list[str] = []
    while line := _read_line():
        text = line.removesuffix("\n")
        if not text.endswith("\\"):
            return "\n".join([*lines, text])
        lines.append(text[:-1])
    return "\n".join(lines) if lines else None


def _read_line() -> str:
    try:
        return sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise Refused(f"standard input is not text: {error}") from error


def _terminal() -> Callable[[], str | None]:
    """A line editor with the history of this session."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        "> ", multiline=True, key_bindings=keys, history=InMemoryHistory(), prompt_continuation=". "
    )

    def listen() -> str | None:
        while True:
            try:
                return session.prompt()
            except KeyboardInterrupt:
                tell("(Ctrl-D or /exit leaves)")
            except EOFError:
                return None

    return listen
