"""The default model, from its file to its text, says what transformers says on the same weights."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from headrace.api.llm import LLM
from headrace.checkpoint.config import read_config
from headrace.checkpoint.load import open_source
from headrace.engine.request import SamplingParams

pytestmark = pytest.mark.model

TOKENS = 64
TIE = 1e-3
"""Logits this close are equal as far as float32 and another order of addition can tell."""
QUESTIONS = [
    "Explain in two sentences what a headrace is.", "What is the capital of France?", "Write a haiku about rain.",
    "List three uses of copper.", "Why is the sky blue?", "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?", "What is 12 times 12?", "Give me a recipe for pancakes.", "How do vaccines work?",
    "Name five rivers in Europe.", "What does HTTP stand for?", "Tell me a short story about a fox.",
    "Write a Python function that adds two numbers.", "What causes the tides?", "Is a tomato a fruit?",
    "Summarize the plot of Cinderella.", "What is the boiling point of water in Fahrenheit?",
    "Give three tips for better sleep.", "Was ist ein Wasserrad?",
]  # fmt: skip
GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS, stop_token_ids=[0, 2])


class Reference(NamedTuple):
    """transformers' model, and its answers to the prompts."""

    model: LlamaForCausalLM
    prompts: list[list[int]]
    answers: list[list[int]]


@pytest.fixture(scope="module")
def llm(default_model: Path) -> LLM:
    """Half as many KV blocks as the answers need, so that many of them are evicted and computed again."""
    return LLM(default_model, device="cpu", dtype="float32", max_model_len=256, num_gpu_blocks_override=56)


@pytest.fixture(scope="module")
def reference(default_model: Path, llm: LLM) -> Reference:
    prompts = [llm.render([{"role": "user", "content": question}]) for question in QUESTIONS]
    model = transformers_model(default_model)
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    out = model.generate(
        padded,
        attention_mask=mask,
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=[2, 0],
        pad_token_id=0,
    )
    return Reference(model, prompts, [_until_end(row[longest:].tolist()) for row in out])


def transformers_model(path: Path) -> LlamaForCausalLM:
    """Built from the hyper-parameters we read, filled with the tensors we read."""
    settings = read_config(path)
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "hidden_act",
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": settings["rope_theta"]}
    config = LlamaConfig(**{name: settings[name] for name in names}, rope_parameters=rope)
    model = LlamaForCausalLM._from_config(config, dtype=torch.float32).eval()
    source = open_source(path)
    weights = {name: source.read(name).float() for name in source.names()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    return model


def _until_end(ids: list[int]) -> list[int]:
    """Up to and including the first end-of-sequence token."""
    stop = next((n for n, token in enumerate(ids) if token in (0, 2)), len(ids))
    return ids[: stop + 1]


@torch.inference_mode()
def assert_same(reference: Reference, number: int, found: list[int]) -> bool:
    """Equal, or (False) up to where the reference's own logits cannot tell two tokens apart."""
    expected = reference.answers[number]
    if found == expected:
        return True
    at = next((n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None)
    assert at is not None, f"prompt {number}: {len(found)} tokens, expected {len(expected)}"
    row = reference.model(torch.tensor([reference.prompts[number] + expected[:at]])).logits[0, -1]
    gap = float(row.max() - row[found[at]])
    assert gap < TIE, f"prompt {number}, token {at}: {found[at]} is {gap:.4f} below {expected[at]}"
    return False


def test_all_at_once_with_too_few_blocks(llm: LLM, reference: Reference):
    before = llm.local.engine.scheduler.counts.evictions
    outputs = llm.generate(reference.prompts, GREEDY, use_tqdm=False)
    assert llm.local.engine.scheduler.counts.evictions > before
    same = [assert_same(reference, n, output.outputs[0].token_ids) for n, output in enumerate(outputs)]
    assert same.count(False) <= 1, "more near-ties than chance gives"
    for output, answer in zip(outputs, reference.answers, strict=True):
        text = llm.get_tokenizer().decode(output.outputs[0].token_ids)
        assert output.outputs[0].text == text
        assert output.outputs[0].finish_reason == ("stop" if answer[-1] in (0, 2) else "length")


@pytest.mark.parametrize("number", [0, 6])
def test_alone(llm: LLM, reference: Reference, number: int):
    (output,) = llm.generate(reference.prompts[number], GREEDY, use_tqdm=False)
    assert_same(reference, number, output.outputs[0].token_ids)


@pytest.mark.slow
def test_each_alone(llm: LLM, reference: Reference):
    llm.reset_prefix_cache()
    outputs = [llm.generate(prompt, GREEDY, use_tqdm=False)[0] for prompt in reference.prompts]
    same = [assert_same(reference, n, output.outputs[0].token_ids) for n, output in enumerate(outputs)]
    assert same.count(False) <= 1, "more near-ties than chance gives"


def test_answers_follow_a_schema(llm: LLM):
    """With a vocabulary of real words, several answers at once, some of which give way for others."""
    schema = {
        "type": "object",
        "properties": {
            "answer": {"type": "string", "maxLength": 12},
            "certain": {"type": "boolean"},
            "year": {"type": ["integer", "null"], "minimum": 0, "maximum": 2100},
            "words": {
                "type": "array",
                "items": {"enum": ["short", "long", "ö"]},
                "minItems": 1,
                "maxItems": 3,
            },
        },
        "required": ["answer", "certain", "year", "words"],
        "additionalProperties": False,
    }
    params = SamplingParams(temperature=1, seed=3, max_tokens=120, structured_outputs={"json": schema})  # pyright: ignore[reportArgumentType]
    before = llm.local.engine.scheduler.counts.evictions
    outputs = llm.chat([[{"role": "user", "content": q}] for q in QUESTIONS], params, use_tqdm=False)
    assert llm.local.engine.scheduler.counts.evictions > before
    answers = [output.outputs[0] for output in outputs]
    assert [answer.finish_reason for answer in answers] == ["stop"] * len(QUESTIONS)
    for answer in answers:
        said = json.loads(answer.text)
        assert list(said) == schema["required"]
        assert len(said["answer"]) <= 12
        assert isinstance(said["certain"], bool)
        assert said["year"] is None or 0 <= said["year"] <= 2100
        assert set(said["words"]) <= {"short", "long", "ö"}
