"""HTTP/1.1 answers read from raw bytes as they come, for a client that must cost less than any server."""

from collections.abc import Callable

LONGEST_HEAD = 64 * 1024


class Malformed(Exception):
    """The bytes are not what HTTP or server-sent events look like."""


class Incoming:
    """Reads one answer. `body` is called with pieces of its body; after `done` nothing more is taken.

    status      the code, once the head is here         headers     names in lower case
    keep        whether the connection may be used again
    """

    def __init__(self, body: Callable[[bytes], None]):
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.done = False
        self.keep = True
        self._body = body
        self._buffer = b""
        # Goes on with what is in the buffer; whether that led anywhere. Not bound, or it would be a cycle to collect.
        self._read: Callable[[Incoming], bool] = Incoming._head
        self._left = 0

    def push(self, data: bytes) -> None:
        """Take bytes off the wire. Raises Malformed."""
        self._buffer = self._buffer + data if self._buffer else data
        while not self.done and self._buffer and self._read(self):
            pass

    def close(self) -> None:
        """The other side has closed. Raises Malformed where that was too early."""
        if self._read is Incoming._rest:
            self.done = True
        if not self.done:
            raise Malformed("the server closed the connection in mid-answer")

    def _head(self) -> bool:
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            if len(self._buffer) > LONGEST_HEAD:
                raise Malformed("the head of an answer does not end")
            return False
        first, *lines = head.split(b"\r\n")
        words = first.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise Malformed(f"an answer begins with {first[:40]!r}")
        self.status, self._buffer = int(words[1]), rest
        for line in lines:
            name, _, value = line.partition(b":")
            self.headers[name.strip().lower()] = value.strip()
        if self.status == 100:
            self.status, self.headers = 0, {}
            return True
        self._choose(words[0])
        return True

    def _choose(self, version: bytes) -> None:
        """How the body ends."""
        headers = self.headers
        connection = headers.get(b"connection", b"").lower()
        self.keep = connection != b"close" and (version == b"HTTP/1.1" or connection == b"keep-alive")
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            self._read = Incoming._size
        elif (length := headers.get(b"content-length")) is not None:
            if not length.isdigit():
                raise Malformed(f"content-length is {length[:20]!r}")
            self._read, self._left = Incoming._length, int(length)
            self.done = not self._left
        elif self.status in (204, 304):
            self.done = True
        else:
            self._read, self.keep = Incoming._rest, False

    def _length(self) -> bool:
        piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
        self._left -= len(piece)
        self._body(piece)
        self.done = not self._left
        return True

    def _size(self) -> bool:
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            if len(line) > 1024:
                raise Malformed("the size of a chunk does not end")
            return False
        try:
            self._left = int(line.partition(b";")[0], 16)
        except ValueError:
            raise Malformed(f"the size of a chunk is {line[:20]!r}") from None
        self._buffer = rest
        self._read = Incoming._chunk if self._left else Incoming._trailer
        return True

    def _chunk(self) -> bool:
        if len(self._buffer) < self._left + 2:
            if len(self._buffer) < self._left and self._buffer:
                piece, self._buffer = self._buffer, b""
                self._left -= len(piece)
                self._body(piece)
            return False
        piece = self._buffer[: self._left]
        if self._buffer[self._left : self._left + 2] != b"\r\n":
            raise Malformed("a chunk does not end where its size says")
        self._buffer = self._buffer[self._left + 2 :]
        self._read = Incoming._size
        if piece:
            self._body(piece)
        return True

    def _trailer(self) -> bool:
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            return False
        self._buffer = rest
        self.done = not line
        return True

    def _rest(self) -> bool:
        """All until the connection is closed."""
        piece, self._buffer = self._buffer, b""
        self._body(piece)
        return False


class Frames:
    """Server-sent events out of a body: the payload of each, whatever pieces it came in."""

    def __init__(self) -> None:
        self._buffer = b""

    def push(self, piece: bytes) -> list[bytes]:
        """Payloads that are complete now. Comments and fields other than `data` are passed over."""
        whole = (self._buffer + piece if self._buffer else piece).replace(b"\r\n", b"\n")
        *events, self._buffer = whole.split(b"\n\n")
        found: list[bytes] = []
        for event in events:
            if event.startswith(b"data:") and b"\n" not in event:
                found.append(event[5:].strip())
            else:
                data = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
                if data:
                    found.append(b"\n".join(data))
        return found
