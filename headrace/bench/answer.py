"""Has a model answer the items of a task, all in one batch, and counts what is right."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from headrace.api.llm import LLM
from headrace.base.errors import TooLong
from headrace.bench.perplexity import ONLY_READ, read_logprobs
from headrace.bench.tasks import Choice, Question, Score, Task
from headrace.engine.request import SamplingParams


class _Scored(NamedTuple):
    """A context with a choice as token ids, the first `context` of which are not counted."""

    ids: list[int]
    context: int


def answer(llm: LLM, task: Task, chat: bool = False) -> list[Score]:
    """A score for each way of counting. `chat`: contexts and prompts are a user's message in the chat template.

    Raises TooLong for an item that the model cannot read at once.
    """
    choices = [item for item in task.items if isinstance(item, Choice)]
    if choices:
        return _choose(llm, task.name, choices, chat)
    return [_generate(llm, task.name, [item for item in task.items if isinstance(item, Question)], chat)]


def _choose(llm: LLM, name: str, items: Sequence[Choice], chat: bool) -> list[Score]:
    scored = [_encode(llm, item.context, choice, chat) for item in items for choice in item.choices]
    for each in scored:
        if len(each.ids) >= llm.plan.max_len:
            raise TooLong(
                f"{name} has an item of {len(each.ids)} tokens; this model can read {llm.plan.max_len - 1}",
                param="task",
            )
    outputs = llm.generate([{"prompt_token_ids": each.ids} for each in scored], ONLY_READ)
    # The first token of a prompt has no log-probability.
    sums = [
        sum(read_logprobs(output)[each.context - 1 :]) for output, each in zip(outputs, scored, strict=True)
    ]
    rest = iter(sums)
    plain, by_length = [], []
    for item in items:
        found = list(islice(rest, len(item.choices)))
        even = [value / len(choice) for value, choice in zip(found, item.choices, strict=True)]
        plain.append(found.index(max(found)) == item.answer)
        by_length.append(even.index(max(even)) == item.answer)
    return [Score(name, "accuracy", tuple(plain)), Score(name, "accuracy per character", tuple(by_length))]


def _encode(llm: LLM, context: str, choice: str, chat: bool) -> _Scored:
    tokenizer = llm.intake.text_tokenizer
    if chat:
        begun = llm.render([{"role": "user", "content": context}], add_generation_prompt=True)
        return _Scored([*begun, *tokenizer.encode(choice, add_special_tokens=False)], len(begun))
    between = "" if context[-1].isspace() or choice[0].isspace() else " "
    ids = tokenizer.encode(context + between + choice)
    alone = tokenizer.encode(context)
    # Where a token goes over the border, it belongs to the choice.
    shared = next(
        (n for n, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), min(len(alone), len(ids) - 1)
    )
    return _Scored(ids, max(1, shared))


def _generate(llm: LLM, name: str, items: Sequence[Question], chat: bool) -> Score:
    params = [SamplingParams(temperature=0.0, max_tokens=item.max_tokens, stop=item.stop) for item in items]
    if chat:
        outputs = llm.chat([[{"role": "user", "content": item.prompt}] for item in items], params)
    else:
        outputs = llm.generate([item.prompt for item in items], params)
    right = [item.accepts(output.outputs[0].text) for item, output in zip(items, outputs, strict=True)]
    return Score(name, "exact match", tuple(right))
