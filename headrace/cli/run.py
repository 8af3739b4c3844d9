"""Answers one prompt, token by token."""

import sys
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from headrace.base.errors import Refused
from headrace.cli._answer import answer, write_out
from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli._load import load
from headrace.cli._sampling import Sampling, SamplingFlags
from headrace.engine.request import SamplingParams

if TYPE_CHECKING:
    from headrace.api.llm import LLM

MOST = 1 << 24
"""Characters of a prompt from standard input."""


def run(
    prompt: Annotated[str | None, Parameter(name="prompt")] = None,
    /,
    *,
    system: str | None = None,
    raw: Annotated[bool, Parameter(negative=())] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
    sampling: SamplingFlags = Sampling(),
    engine: EngineFlags = Engine(),
) -> int:
    """Answer one prompt.

    The answer goes to standard output as it comes, statistics to standard error. Ctrl-C ends the answer. A prompt that
    begins with a hyphen comes after `--`.

    Parameters
    ----------
    prompt
        what to ask; left out: standard input is read
    system
        a system message before it
    raw
        let the model continue the prompt as it is, without its chat template
    quiet
        no statistics
    """
    if raw and system is not None:
        raise Refused("--system needs the chat template that --raw leaves out", hint="leave one of them out")
    text = _prompt(prompt)
    sampling.params(SamplingParams())  # what cannot be is refused before a model is loaded
    began = perf_counter()
    llm = load(engine.config)
    loaded = perf_counter() - began
    got = answer(llm, _ids(llm, text, system, raw), sampling.params(llm.defaults), write_out)
    write_out("\n" if not got.text.endswith("\n") else "")
    if not quiet:
        sys.stderr.write(f"[loaded in {loaded:.1f} s, {got.line()}]\n")
    return 130 if got.finish == "abort" else 0


def _prompt(given: str | None) -> str:
    """The prompt, from the argument or standard input. Raises Refused if there is none."""
    if given is None:
        if sys.stdin.isatty():
            raise Refused(
                "there is no prompt",
                param="prompt",
                hint='headrace run "What is a headrace?", or pipe a text in',
            )
        try:
            text = sys.stdin.read(MOST + 1)
        except UnicodeDecodeError as error:
            raise Refused(f"standard input is not text: {error}", param="prompt") from error
        if len(text) > MOST:
            raise Refused(
                f"standard input has more than {MOST:,} characters",
                param="prompt",
                hint="pipe a text in that a model's context can hold",
            )
        given = text.removesuffix("\n")  # the one that `echo` adds
    if not given or not given.strip():
        raise Refused("the prompt is empty", param="prompt", hint="give at least a word")
    return given


def _ids(llm: "LLM", text: str, system: str | None, raw: bool) -> list[int]:
    if raw or llm.intake.text_tokenizer.template is None:
        if system is not None:
            raise Refused(
                "this model has no chat template, so there is no place for --system",
                hint="write it into the prompt, or give a template with --chat-template",
            )
        return llm.intake.ids(text)
    before = [{"role": "system", "content": system}] if system is not None else []
    return llm.render([*before, {"role": "user", "content": text}])
