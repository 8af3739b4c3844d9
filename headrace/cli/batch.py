"""Answers a file of OpenAI batch lines."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from headrace.base.errors import Broken, Fault, Refused
from headrace.cli import _lines
from headrace.cli._answer import Interrupt
from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli._lines import Answers, Line
from headrace.cli._load import Meter, load
from headrace.engine.dialect import ROUTES, Ask
from headrace.engine.reply import error, reply
from headrace.engine.stream import Stream

if TYPE_CHECKING:
    from headrace.api.llm import LLM

AHEAD = 2
"""Requests kept in the engine, in steps' worth of rows: one running, one waiting for a row that falls free."""

Json = dict[str, Any]


def run(
    file: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    engine: EngineFlags = Engine(),
) -> int:
    """Answer a file of OpenAI batch lines.

    A line is {"custom_id", "method", "url", "body"} with url /v1/chat/completions or /v1/completions. Every line gets
    one answer; for a bad one that is an error. Answers are appended in the order in which they are ready. Run it again
    after an interruption: what is answered is not repeated. Exits with 0 when every line has its answer, bad ones
    included.

    Parameters
    ----------
    file
        the lines
    output
        where answers go; what it has of an earlier run is kept
    """
    total = _lines.count(file)
    if output.exists() and output.samefile(file):
        raise Refused(f"{output} is both input and output", param="output", hint="give another file with -o")
    answers = Answers(output)
    try:
        before = len(answers.done)
        if before:
            sys.stderr.write(f"{before} lines are answered in {output} already\n")
        todo = (line for line in _lines.read(file) if line.name not in answers.done)
        if (first := next(todo, None)) is None:
            sys.stderr.write(f"nothing to do: {total} lines in {file}\n")
            return 0
        work = Work(load(engine.config), answers)
        finished = work.through(chain([first], todo), total, before)
    finally:
        answers.close()
    sys.stderr.write(work.summary(output))
    if not finished:
        sys.stderr.write("interrupted; run the same command again to go on\n")
        return 130
    return 0


@dataclass(slots=True)
class Job:
    """A line in the engine: its streams, and how many of them have not ended."""

    line: Line
    ask: Ask
    streams: list[Stream] = field(default_factory=list)
    left: int = 0


class Work:
    """Keeps the engine filled from the lines, and writes each answer when it is whole."""

    def __init__(self, llm: "LLM", answers: Answers):
        self.llm, self.answers = llm, answers
        self.model = llm.plan.model
        self.jobs: dict[str, Job] = {}
        self.done = self.bad = self.read = self.written = 0
        self.began = monotonic()
        self._warned: set[str] = set()

    def through(self, lines: Iterator[Line], total: int, before: int) -> bool:
        """Answer all `lines`; False if Ctrl-C ended it. What was in the engine then has no answer yet."""
        most = AHEAD * self.llm.plan.rows
        with Interrupt() as interrupt, Meter(clock=True) as meter:
            more = True
            while (more or self.jobs) and not interrupt.asked:
                while more and len(self.jobs) < most and not interrupt.asked:
                    line = next(lines, None)
                    if more := line is not None:
                        self._begin(line)
                self._step()
                meter.tell(self._said(total, before), self.done / max(1, total - before))
            for id in list(self.jobs):
                self.llm.local.cancel(id)
        return not self.jobs

    def _begin(self, line: Line) -> None:
        """Put a line into the engine, or answer it with what is wrong with it."""
        try:
            ask = self._ask(line)
            make = partial(self.llm.intake.requests, params=ask.params, salt=ask.salt, priority=ask.priority)
            requests = [
                request
                for n, prompt in enumerate(ask.prompts)
                for request in make(f"{line.id}/{n}", {"prompt_token_ids": prompt})
            ]
            job = Job(line, ask, left=len(requests))
            for request in requests:
                job.streams.append(self.llm.local.submit(request))
                self.jobs[request.id] = job
        except Refused as fault:
            for id in [id for id, job in self.jobs.items() if job.line.id == line.id]:
                self.llm.local.cancel(id)
                del self.jobs[id]
            self._write(line, fault)

    def _ask(self, line: Line) -> Ask:
        """What a line asks for. Raises Refused with what is wrong with it."""
        if line.wrong is not None:
            raise line.wrong
        if line.method != "POST":
            raise Refused(f"method is {line.method!r}; expected 'POST'", param="method")
        if not isinstance(line.url, str) or (read := ROUTES.get(line.url)) is None:
            raise Refused(f"url is {line.url!r}; expected {' or '.join(ROUTES)}", param="url")
        ask = read(line.body, self.llm.intake, self.llm.defaults)
        if ask.stream:
            raise Refused(
                "stream is true; answers of a batch are whole", param="stream", hint="leave stream out"
            )
        for name in ask.unknown:
            self._warn(f"the field {name!r} is unknown here and ignored")
        if ask.model is not None and ask.model != self.model:
            self._warn(f"lines ask for the model {ask.model!r}; all are answered by {self.model!r}")
        return ask

    def _step(self) -> None:
        for id, update in self.llm.local.step():
            job = self.jobs.get(id)
            if job is None or not update.finish:
                continue
            del self.jobs[id]
            job.left -= 1
            if not job.left:
                failed = any(stream.finish == "error" for stream in job.streams)
                fault = Broken("the request failed in the engine", hint="the log says why")
                self._write(job.line, fault if failed else job)

    def _write(self, line: Line, outcome: Job | Fault) -> None:
        self.done += 1
        if isinstance(outcome, Fault):
            self.bad += 1
            said = error(outcome)
            self.answers.add(line, _answer(line, outcome.status, {"error": said}) | {"error": said})
            return
        ask, streams = outcome.ask, outcome.streams
        prefix = "chatcmpl" if ask.kind == "chat" else "cmpl"
        body = reply(ask, f"{prefix}-{line.id}", int(time()), self.model, streams, self.llm.intake.tokenizer)
        self.read += body["usage"]["prompt_tokens"]
        self.written += body["usage"]["completion_tokens"]
        self.answers.add(line, _answer(line, 200, body) | {"error": None})

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            sys.stderr.write(f"warning: {text}\n")

    def _said(self, total: int, before: int) -> str:
        rate = self.written / max(monotonic() - self.began, 1e-9)
        wrong = f", {self.bad} with an error" if self.bad else ""
        return f"{before + self.done} of {total}, {rate:.0f} tok/s{wrong}"

    def summary(self, output: Path) -> str:
        seconds = monotonic() - self.began
        return (
            f"{self.done} lines answered in {seconds:.1f} s, {self.bad} of them with an error; {self.read} tokens read,"
            f" {self.written} written ({self.written / max(seconds, 1e-9):.0f} tok/s); answers are in {output}\n"
        )


def _answer(line: Line, status: int, body: Json) -> Json:
    return {"response": {"status_code": status, "request_id": line.id, "body": body}}
