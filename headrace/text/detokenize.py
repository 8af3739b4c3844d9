"""Turn token ids into text as they come, never showing half a character."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

from headrace.text.tokenizer import Tokenizer, to_text

# A tail that still ends in U+FFFD after so many tokens is no unfinished character.
_PATIENCE = 8


class Detokenizer:
    """The text of one growing sequence of ids.

    All pieces together are what `Tokenizer.decode` makes of prompt and ids, less what it makes of the prompt.
    Cost per token does not depend on how many came before.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        shown: Collection[int] = (),
    ):
        """`prompt_ids` decide about the first space, and may end inside a character.

        `shown` are special tokens that are not skipped.
        """
        self._tokenizer = tokenizer
        self._hidden: frozenset[int] = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._hidden -= frozenset(shown)
        self._between = False
        if tokenizer.spelling == "other":
            self._before = [*islice(self._visible(reversed(prompt_ids)), _PATIENCE)][::-1]
            self._pending: list[int] = []
            self._shown = tokenizer.decode(self._before, False)
            return
        self._decoder = tokenizer.decoder()
        tail = self._tail(prompt_ids)
        to_text(self._decoder, tail)
        self._strip = 0 if tail else tokenizer.strip_left
        self._texts = tokenizer.texts
        self._between = self._is_between()

    def push(self, ids: Sequence[int]) -> str:
        """The text that is certain now; "" while a character is unfinished."""
        if self._between and self._hidden.isdisjoint(ids):
            try:  # whole characters after whole characters are all but a few
                return "".join(map(self._texts.__getitem__, ids))
            except KeyError:
                pass
        if self._tokenizer.spelling == "other":
            return "".join([self._push_other(index) for index in self._visible(ids)])
        token_bytes, hidden = self._tokenizer.token_bytes, self._hidden
        return self._text(b"".join([token_bytes(index) for index in ids if index not in hidden]))

    def finish(self) -> str:
        """What was held back, unfinished characters as U+FFFD, when no more ids will come."""
        if self._tokenizer.spelling == "other":
            return self._rest() if self._pending else ""
        return self._text(b"", final=True)

    def _text(self, raw: bytes, final: bool = False) -> str:
        text = to_text(self._decoder, raw, final)
        while self._strip and text:
            self._strip, text = (self._strip - 1, text[1:]) if text[0] == " " else (0, text)
        self._between = self._is_between()
        return text

    def _is_between(self) -> bool:
        """Whether nothing that came before has a say in the next token's text."""
        return not self._strip and not self._decoder.getstate()[0]

    def _tail(self, prompt_ids: Sequence[int]) -> bytes:
        """The last bytes of the prompt; four hold every unfinished character."""
        tail = b""
        for index in reversed(prompt_ids):
            if index not in self._hidden:
                tail = self._tokenizer.token_bytes(index) + tail
            if len(tail) >= 4:
                break
        return tail

    def _visible(self, ids: Iterable[int]) -> Iterator[int]:
        return (i for i in ids if i not in self._hidden and self._tokenizer.id_to_piece(i) is not None)

    def _push_other(self, index: int) -> str:
        """A vocabulary whose decoder looks at neighbours: decode with the tokens before, keep what is new."""
        self._pending.append(index)
        text = self._tokenizer.decode(self._before + self._pending, False)
        if len(text) <= len(self._shown) or (text.endswith("\ufffd") and len(self._pending) < _PATIENCE):
            return ""
        return self._rest()

    def _rest(self) -> str:
        new = self._tokenizer.decode(self._before + self._pending, False)[len(self._shown) :]
        self._before, self._pending = self._pending, []
        self._shown = self._tokenizer.decode(self._before, False)
        return new
