"""Sends requests when they are due and notes when what comes back comes: one event loop of one process."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from random import Random
from time import monotonic
from typing import Any

import msgspec

from headrace.bench.serve.connection import Left, Pool, Target
from headrace.bench.serve.dialect import PATHS, Ask, Usage, read, said_by
from headrace.bench.serve.http import Frames, Malformed
from headrace.bench.serve.sample import Sample

PAUSE = 0.1
"""Seconds that a stream of a closed loop waits after an error, so that a dead server is not flooded."""

REFUSALS = frozenset({429, 503})
LOST = "connection: "
"""What the reason begins with where there was no connection, or none any more."""


Prompt = str | list[int] | list[dict[str, Any]]


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """One request of a conversation. `think` is how many seconds its user waits before it.

    prompt      text, token ids, or messages; of a later turn, the messages that are added
    """

    prompt: Prompt
    max_tokens: int | None = None
    think: float = 0.0


Conversation = Sequence[Turn]


class Reading:
    """What is known of one answer while it comes. `limit`: tokens after which we hang up."""

    __slots__ = ("_frames", "_whole", "ended", "finish", "limit", "raw", "sample", "start", "stream", "text")

    def __init__(self, sample: Sample, start: float, stream: bool, keep_text: bool, limit: int | None):
        self.sample, self.start, self.stream, self.limit = sample, start, stream, limit
        self.text: list[str] | None = [] if keep_text else None
        self.ended = False
        self.finish = ""
        self.raw: list[bytes] = []
        self._frames = Frames()

    def body(self, piece: bytes) -> None:
        """A piece of the body came. Raises Malformed, or Left."""
        now = monotonic() - self.start
        if not self.stream or not self._looks_like_events(piece):
            self.raw.append(piece)
            return
        for frame in self._frames.push(piece):
            if self.ended:
                raise Malformed("the stream goes on after its end")
            if frame == b"[DONE]":
                self.ended = True
            else:
                self._take(frame, now)

    def _looks_like_events(self, piece: bytes) -> bool:
        """An error that came instead of a stream has one piece of JSON, not frames."""
        return not self.raw and (self.sample.opened is not None or not piece.lstrip().startswith(b"{"))

    def _take(self, frame: bytes, now: float) -> None:
        sample, chunk = self.sample, read(frame)
        if chunk.error is not None:
            raise Malformed(f"error in mid-stream: {said_by(frame)}")
        if chunk.choices and sample.opened is None:
            sample.opened = now
        text = ""
        for choice in chunk.choices:
            text += choice.said
            self.finish = choice.finish_reason or self.finish
        before = sample.output_tokens
        if chunk.usage is not None:
            self._count(chunk.usage)
        new = sample.output_tokens - before if sample.counted else int(bool(text))
        if not (text or (new and chunk.choices)):
            return  # the role, the end, or usage alone
        if not sample.counted:
            sample.output_tokens += 1
        self._arrived(now, max(new, 1))
        if self.text is not None:
            self.text.append(text)
        if self.limit is not None and sample.output_tokens >= self.limit:
            raise Left

    def _arrived(self, now: float, tokens: int) -> None:
        """A chunk with tokens came."""
        sample = self.sample
        if sample.first is None:
            sample.first = now
        else:
            sample.chunks.append(now - (sample.last or 0.0))
        if tokens != 1 and not sample.tokens:
            sample.tokens = [1] * len(sample.chunks)
        if tokens != 1 or sample.tokens:
            sample.tokens.append(tokens)
        sample.last = now

    def _count(self, usage: Usage) -> None:
        sample = self.sample
        if usage.completion_tokens is not None:
            sample.output_tokens, sample.counted = usage.completion_tokens, True
        sample.prompt_tokens = usage.prompt_tokens or sample.prompt_tokens
        if usage.prompt_tokens_details is not None:
            sample.cached_tokens = usage.prompt_tokens_details.cached_tokens or 0

    def close(self, status: int) -> None:
        """The answer is over: what became of it. Raises Malformed for one that is not whole."""
        sample = self.sample
        sample.status = status
        if status != 200:
            sample.outcome = "refused" if status in REFUSALS else "error"
            sample.reason = f"HTTP {status}: {said_by(b''.join(self.raw))}"
            return
        if not self.stream or self.raw:
            self._whole_answer()
        elif not self.ended:
            raise Malformed("the stream ends without [DONE]")
        elif sample.first is None and not sample.output_tokens:
            raise Malformed("the answer has no tokens")
        sample.outcome, sample.reason = "ok", self.finish

    def _whole_answer(self) -> None:
        """An answer that came in one piece: its first token is its last."""
        chunk = read(b"".join(self.raw))
        if chunk.error is not None or not chunk.choices:
            raise Malformed(f"no answer: {said_by(b''.join(self.raw))}")
        if chunk.usage is not None:
            self._count(chunk.usage)
        self.finish = chunk.choices[0].finish_reason or ""
        self.sample.last = monotonic() - self.start
        if self.text is not None:
            self.text.append(chunk.choices[0].said)


class Client:
    """Plays conversations against a server. `noted` is told of every request that is over.

    start       monotonic moment that all times count from
    cancel      part of the requests that are hung up on, after a random part of their tokens
    timeout     seconds after which a request is given up
    """

    def __init__(
        self, target: Target, ask: Ask, noted: Callable[[Sample], None], *, start: float, timeout: float = 600.0,
        cancel: float = 0.0, seed: int = 0,
    ):  # fmt: skip
        self.pool, self.ask, self.noted = Pool(target), ask, noted
        self.start, self.timeout, self.cancel = start, timeout, cancel
        self.running = 0
        self.streamed = 0
        self._random = Random(seed)
        self._path = PATHS[ask.endpoint]

    async def open_loop(self, due: Sequence[tuple[float, Conversation]], until: float) -> None:
        """Begin each conversation at its moment, whatever became of those before; at `until` all is given up."""
        tasks: set[asyncio.Task[Any]] = set()
        for at, conversation in due:
            delay = self.start + at - monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            task = asyncio.create_task(self._play(conversation, at))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await self._finish(tasks, until)

    async def closed_loop(
        self, conversations: Iterator[Conversation], streams: int, last: float, until: float
    ) -> None:
        """Keep `streams` conversations going until `last`, or until there are no more."""

        async def stream() -> None:
            for conversation in conversations:
                now = monotonic() - self.start
                if now >= last:
                    return
                if not await self._play(conversation, max(now, 0.0)):
                    await asyncio.sleep(PAUSE)

        delay = self.start - monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        tasks = {asyncio.create_task(stream()) for _ in range(streams)}
        await self._finish(tasks, until)

    async def _finish(self, tasks: "set[asyncio.Task[Any]]", until: float) -> None:
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, self.start + until - monotonic()))
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.pool.close()

    async def _play(self, conversation: Conversation, at: float) -> bool:
        """All turns of a conversation; whether they went well."""
        messages: list[dict[str, Any]] = []
        several = len(conversation) > 1
        for number, turn in enumerate(conversation):
            if number:
                await asyncio.sleep(turn.think)
                at = monotonic() - self.start
            prompt = turn.prompt
            if several:
                messages += _messages(prompt)
                prompt = messages
            sample = Sample(at, monotonic() - self.start, turn=number)
            said = await self._request(sample, prompt, turn.max_tokens, several)
            if sample.outcome != "ok":
                return False
            if several:
                messages.append({"role": "assistant", "content": said})
        return True

    async def _request(self, sample: Sample, prompt: Prompt, most: int | None, keep: bool) -> str:
        limit = None
        if self.cancel and self._random.random() < self.cancel:
            limit = self._random.randint(1, max(1, (most or 64) - 1))
        reading = Reading(sample, self.start, self.ask.stream, keep, limit)
        self.running += 1
        try:
            async with asyncio.timeout(self.timeout):
                await self._exchange(self.ask.body(prompt, most), reading)
        except Left:
            sample.outcome, sample.status = "cancelled", 200
        except TimeoutError:
            sample.reason = f"no end within {self.timeout:g} s"
        except Malformed as fault:
            sample.reason = f"malformed: {fault}"
        except OSError as fault:
            sample.reason = f"{LOST}{fault.strerror or str(fault) or type(fault).__name__}"
        except asyncio.CancelledError:
            sample.outcome, sample.reason = "unfinished", "not over when the run was"
            raise
        finally:
            self.running -= 1
            self.streamed += sample.output_tokens
            sample.ended = monotonic() - self.start
            self.noted(sample)
        return "".join(reading.text or ())

    async def _exchange(self, body: bytes, reading: Reading) -> None:
        request = self.pool.target.head("POST", self._path, len(body)) + body
        connection = await self.pool.get()
        try:
            incoming = await connection.ask(request, reading.body)
        finally:
            self.pool.put(connection)
        reading.close(incoming.status)


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    """What a turn adds to its conversation. Token ids are no message and say nothing."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [message for message in prompt if isinstance(message, dict)]
