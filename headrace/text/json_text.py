"""Read JSON from a tape as it arrives, mending what models often get wrong in it."""

import json
import re

from headrace.text.tape import SPACE, Reading, Say, Tape

PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
WORD = re.compile(r"[\w.+-]*")
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
WORDS = {
    "true": "true", "false": "false", "null": "null",
    "True": "true", "False": "false", "None": "null",
}  # fmt: skip
CLOSE = {"{": "}", "[": "]"}
HEX = frozenset("0123456789abcdefABCDEF")


class Malformed(Exception):
    """What is read is not what it should be; the tape stands at the character that is wrong.

    `closers` are the brackets that alone are missing, "" where more is wrong.
    """

    def __init__(self, closers: str = ""):
        super().__init__(closers)
        self.closers = closers


def value(tape: Tape, say: Say) -> Reading[None]:
    """Read one value, saying it as it comes. Raises Malformed; what was said until then is a beginning of JSON.

    Mended: control characters in strings, unknown escapes, and Python's True, False and None.
    """
    stack: list[str] = []
    while True:
        yield from tape.run(SPACE, say)
        first = yield from tape.peek()
        if first and first in "{[":
            say(tape.take(1))
            stack.append(first)
            yield from tape.run(SPACE, say)
            if (yield from tape.peek()) != CLOSE[first]:
                if first == "{":
                    yield from _key(tape, say)
                continue
        elif first == '"':
            yield from string(tape, say)
        else:
            yield from _word(tape, say)
        if (yield from _after(tape, say, stack)):
            return


def text(tape: Tape) -> Reading[str]:
    """Read one value and give its text. Raises Malformed."""
    pieces: list[str] = []
    yield from value(tape, pieces.append)
    return "".join(pieces)


def string(tape: Tape, say: Say) -> Reading[None]:
    """Read one string, quotes included. Raises Malformed."""
    if (yield from tape.peek()) != '"':
        raise Malformed
    say(tape.take(1))
    while True:
        yield from tape.run(PLAIN, say)
        match (yield from tape.peek()):
            case "":
                raise Malformed
            case '"':
                say(tape.take(1))
                return
            case "\\":
                yield from _escape(tape, say)
            case _:
                say(json.dumps(tape.take(1))[1:-1])


def _after(tape: Tape, say: Say, stack: list[str]) -> Reading[bool]:
    """After a value, or before the bracket that closes an empty one: whether the outermost value is complete."""
    while stack:
        yield from tape.run(SPACE, say)
        match (yield from tape.peek()):
            case ",":
                say(tape.take(1))
                if stack[-1] == "{":
                    yield from _key(tape, say)
                return False
            case mark if mark == CLOSE[stack[-1]]:
                say(tape.take(1))
                stack.pop()
            case _:
                raise Malformed("".join(CLOSE[bracket] for bracket in reversed(stack)))
    return True


def _key(tape: Tape, say: Say) -> Reading[None]:
    yield from tape.run(SPACE, say)
    yield from string(tape, say)
    yield from tape.run(SPACE, say)
    if (yield from tape.peek()) != ":":
        raise Malformed
    say(tape.take(1))


def _escape(tape: Tape, say: Say) -> Reading[None]:
    two = yield from tape.ahead(2)
    if len(two) < 2:
        raise Malformed
    if two[1] == "u":
        six = yield from tape.ahead(6)
        if len(six) == 6 and HEX.issuperset(six[2:]):
            say(tape.take(6))
            return
        if tape.ended and HEX.issuperset(six[2:]):
            raise Malformed  # the text ended within the escape
    elif two[1] in '"\\/bfnrt':
        say(tape.take(2))
        return
    tape.take(1)
    if two[1] != "'":
        say("\\\\")  # a backslash that escapes nothing is meant as one


def _word(tape: Tape, say: Say) -> Reading[None]:
    word = yield from tape.word(WORD)
    if word in WORDS:
        say(WORDS[word])
    elif NUMBER.fullmatch(word):
        say(word)
    else:
        raise Malformed
