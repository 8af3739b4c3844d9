"""LLM: a model in this process, for scripts. Call shapes are vLLM's, so that changing the import is the only edit."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from os import PathLike
from time import monotonic
from typing import Any

import msgspec
from rich import progress as bars
from rich.console import Console

from headrace.api.local import Local
from headrace.api.outputs import RequestMetrics, RequestOutput, gathered
from headrace.base.config import Config, from_names, replace_dotted
from headrace.base.errors import Refused
from headrace.engine.intake import Intake, Prompt
from headrace.engine.request import Request, SamplingParams
from headrace.engine.resolve import Plan
from headrace.engine.start import Notify, start
from headrace.engine.stream import Stream, Update
from headrace.engine.structured import behind_thoughts
from headrace.text.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]


class LLM:
    """Loads a model and generates with it.

    `model` is a known name, a folder, a .gguf file or a hub's repo id. Other settings are vLLM's names
    (`max_model_len`, `gpu_memory_utilization`, ...) or our own dotted ones (`**{"memory.share": 0.5}`);
    alternatively a whole `config`. Raises Refused for what cannot be done, before anything is loaded.
    """

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        *,
        config: Config | None = None,
        progress: Notify | None = None,
        **settings: Any,
    ):
        if config is not None and settings:
            raise Refused("give either config or single settings, not both", param="config")
        if config is None:
            config = from_names(**settings)
        if model is not None:
            config = replace_dotted(config, {"model.path": str(model)})
        started = start(config, progress)
        self.plan: Plan = started.plan
        self.intake: Intake = started.intake
        self.defaults: SamplingParams = started.defaults
        self.local = Local(started.engine, started.intake.tokenizer)
        self._ids = count()
        self._open: dict[str, deque[Update]] = {}

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Answers to all prompts, in their order, computed together.

        A prompt is text, token ids, {"prompt": text} or {"prompt_token_ids": [...]}, with an optional
        "cache_salt" that keeps its KV blocks apart. One SamplingParams for all, or one for each.
        Raises Refused or TooLong before anything runs if one of them cannot be served.
        """
        items = _as_list(prompts)
        params = self._params(sampling_params, len(items))
        if priority is not None and len(priority) != len(items):
            raise Refused(
                f"{len(items)} prompts and {len(priority)} priorities; expected as many", param="priority"
            )
        grammars = self.intake.begin(params)
        jobs = [
            self._job(item, each, priority[i] if priority else 0)
            for i, (item, each) in enumerate(zip(items, params, strict=True))
        ]
        self._run([request for job in jobs for request in job.requests], jobs, use_tqdm)
        del grammars
        return [job.output(self.intake.tokenizer) for job in jobs]

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers to one conversation or several, each a list of {"role": ..., "content": ...}."""
        one = isinstance(messages, Sequence) and messages and isinstance(messages[0], Mapping)
        conversations = [messages] if one else messages
        options = {
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
            "continue_final_message": continue_final_message,
            "tools": tools,
            "chat_template_kwargs": chat_template_kwargs,
        }
        prompts = [self._rendered(one, **options) for one in conversations]  # pyright: ignore[reportArgumentType]
        tags, params = self.intake.text_tokenizer.formats.thinking, []
        for each, prompt in zip(self._params(sampling_params, len(prompts)), prompts, strict=True):
            begun = tags is not None and tags.begun(prompt["prompt"], continue_final_message)
            form = behind_thoughts(each.structured_outputs, tags, begun)
            params.append(msgspec.structs.replace(each, structured_outputs=form))
        return self.generate(prompts, params, use_tqdm)

    def render(self, messages: Messages, **options: Any) -> list[int]:
        """Token ids of a conversation, through the model's chat template; `options` are those of its `render`."""
        return self._rendered(messages, **options)["prompt_token_ids"]

    def _rendered(self, messages: Messages, **options: Any) -> dict[str, Any]:
        tokenizer = self.intake.text_tokenizer
        text = tokenizer.chat_template().render(messages, **options)
        return {"prompt": text, "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[Update]:
        """One answer as it comes. Closing the iterator ends the request."""
        params = sampling_params or self.defaults
        if params.n != 1:
            raise Refused(f"n is {params.n}; a stream is one answer", param="n", hint="use generate")
        job = self._job(prompt, params, 0)
        (request,) = job.requests
        self.local.submit(request)
        mine = self._open[request.id] = deque[Update]()
        try:
            while True:
                while mine:
                    yield (update := mine.popleft())
                    if update.finish:
                        return
                self._step()
        finally:
            del self._open[request.id]
            self.local.cancel(request.id)

    def get_tokenizer(self) -> Tokenizer:
        return self.intake.text_tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's makers recommend, or the neutral defaults."""
        return self.defaults

    def reset_prefix_cache(self) -> None:
        """Forget what was computed for earlier prompts."""
        self.local.engine.forget()

    # -- inside ---------------------------------------------------------------------------------

    def _params(
        self, given: SamplingParams | Sequence[SamplingParams] | None, n: int
    ) -> Sequence[SamplingParams]:
        if given is None:
            return [self.defaults] * n
        if isinstance(given, SamplingParams):
            return [given] * n
        if len(given) != n:
            raise Refused(
                f"{n} prompts and {len(given)} SamplingParams; expected one for all or one for each",
                param="sampling_params",
            )
        return given

    def _job(self, prompt: Prompt, params: SamplingParams, priority: int) -> "_Job":
        id = str(next(self._ids))
        requests = self.intake.requests(id, prompt, params, salt=salt_of(prompt), priority=priority)
        return _Job(text_of(prompt), requests)

    def _step(self) -> list[tuple[str, Update]]:
        """A step's updates, less those of open streams, which find theirs when they are asked next."""
        updates = self.local.step()
        if not self._open:
            return updates
        for id, update in updates:
            if id in self._open:
                self._open[id].append(update)
        return [pair for pair in updates if pair[0] not in self._open]

    def _run(self, requests: list[Request], jobs: "list[_Job]", show: bool) -> None:
        """Submit, and step until all have ended. Whatever happens, none of them stays behind."""
        owner = {request.id: job for job in jobs for request in job.requests}
        try:
            for request in requests:
                owner[request.id].streams.append(self.local.submit(request, whole=True))
            with _Bar(jobs, show) as advance:
                left = len(requests)
                while left:
                    before = left
                    for id, update in self._step():
                        job = owner[id]
                        if update.token_ids and job.metrics.first_token_time is None:
                            job.metrics.first_token_time = monotonic()
                        if update.finish:
                            job.metrics.finished_time = monotonic()
                            left -= 1
                    advance(before - left)
        finally:
            for request in requests:
                self.local.cancel(request.id)


class _Job:
    """One prompt and the requests made of it."""

    def __init__(self, text: str | None, requests: list[Request]):
        self.text, self.requests = text, requests
        self.streams: list[Stream] = []
        self.metrics = RequestMetrics(arrival_time=monotonic())

    def output(self, tokenizer: Tokenizer | None) -> RequestOutput:
        made = gathered(self.requests[0].id.split("/")[0], self.text, self.streams, tokenizer)
        made.metrics = self.metrics
        return made


class _Bar:
    """Progress of a long run on standard error: requests done, time left, tokens per second."""

    def __init__(self, jobs: list[_Job], show: bool):
        self.jobs, self.done, self.began, self.drawn = jobs, 0, monotonic(), 0.0
        console = Console(stderr=True)
        counts = bars.BarColumn(), bars.MofNCompleteColumn()
        times = bars.TimeElapsedColumn(), bars.TimeRemainingColumn()
        columns = *counts, *times, bars.TextColumn("{task.fields[rate]}")
        hidden = not (show and console.is_terminal)
        self.progress = bars.Progress(
            bars.TextColumn("generating"), *columns, console=console, transient=True, disable=hidden
        )

    def __enter__(self) -> Callable[[int], None]:
        self.progress.start()
        total = sum(len(job.requests) for job in self.jobs)
        self.task = self.progress.add_task("", total=total, rate="")
        return self.advance

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def advance(self, ended: int) -> None:
        """Show that another step was made, in which so many requests ended."""
        self.done += ended
        now = monotonic()
        if not self.progress.disable and now - self.drawn > 0.25:
            tokens = sum(len(stream.token_ids) for job in self.jobs for stream in job.streams)
            rate = f"{tokens / max(now - self.began, 1e-9):.0f} tok/s"
            self.progress.update(self.task, completed=self.done, rate=rate)
            self.drawn = now


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A single prompt is text, a mapping, or a list of token ids; what is none at all is left to the intake."""
    several = isinstance(prompts, Sequence) and not isinstance(prompts, str | bytes | bytearray)
    if not several or (prompts and isinstance(next(iter(prompts)), int)):
        return [prompts]  # pyright: ignore[reportReturnType]
    return list(prompts)  # pyright: ignore[reportReturnType]


def salt_of(prompt: Prompt) -> str:
    """The "cache_salt" that came with a prompt; the intake says whether it is one."""
    salt = prompt.get("cache_salt") if isinstance(prompt, Mapping) else None
    return "" if salt is None else salt


def text_of(prompt: Prompt) -> str | None:
    if isinstance(prompt, str):
        return prompt
    text = prompt.get("prompt") if isinstance(prompt, Mapping) else None
    return text if isinstance(text, str) else None
