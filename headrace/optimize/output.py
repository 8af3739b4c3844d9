"""The result as a folder that Hugging Face tools and ours load: shards, config.json, tokenizer, recipe, model card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.base.json_file import read_json
from headrace.base.words import dtype_name
from headrace.checkpoint import shards
from headrace.checkpoint.config import read_tokenizer
from headrace.checkpoint.gguf import opened
from headrace.checkpoint.sampling import recommended
from headrace.optimize.card import card
from headrace.optimize.job import Job
from headrace.optimize.outcome import FORMAT, REPORT, Outcome
from headrace.optimize.work import RESULT, Work, sync
from headrace.quant.export import HEAD
from headrace.quant.export import config as quantization_config

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
}  # fmt: skip
OURS = ("rope_freq_factors",)
"""Keys that only our own reader knows; they are written where they say something."""


def write_shards(work: Work, parts: list[str]) -> int:
    """Join the parts into shards, which survives being killed at any time; bytes of all."""
    result = work.folder / RESULT
    result.mkdir(exist_ok=True)
    if "shards" not in work.journal:
        files = [f"{part}.part" for part in parts]
        planned = shards.plan(files, lambda file: (work.folder / file).stat().st_size)
        work.note(shards=planned, joined=0)
    for number, (name, files) in enumerate(work.journal["shards"]):
        if number >= work.journal["joined"]:
            found = [one for file in files for one in shards.entries(work.folder / file)]
            shards.write(result / name, found)
            sync(result)
            work.note(joined=number + 1)
        for file in files:
            (work.folder / file).unlink(missing_ok=True)
    names = [name for name, _ in work.journal["shards"]]
    shards.write_index(result, {name: shards.entries(result / name) for name in names})
    return sum((result / name).stat().st_size for name in names)


def write_rest(job: Job, result: Path, outcome: Outcome, beside: Mapping[str, Any]) -> None:
    """All that is not weights, a report of what is known without evaluation among it."""
    for name, value in {**beside, REPORT: {"format": FORMAT, "outcome": outcome.as_object()}}.items():
        (result / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    _write_json(result / "config.json", config(job))
    _write_tokenizer(job, result)
    (result / "recipe.yaml").write_text(job.recipe.to_yaml(), encoding="utf-8")
    (result / "README.md").write_text(card(job, outcome), encoding="utf-8")


def config(job: Job) -> dict[str, Any]:
    """config.json: the source's own, but for what has changed; of a GGUF file, what its metadata say."""
    if job.path.is_dir():
        found = read_json(job.path / "config.json")
    else:
        found = {key: value for key, value in job.settings.items() if value is not None and key not in OURS}
        found["architectures"] = [ARCHITECTURES[found["model_type"]]]
        if job.settings.get("rope_freq_factors") is not None:
            found["rope_freq_factors"] = job.settings["rope_freq_factors"]
    for key in ("quantization_config", "torch_dtype", "dtype"):
        found.pop(key, None)
    found["dtype"] = dtype_name(job.dtype)
    found["tie_word_embeddings"] = job.tied
    layers = {name: assigned.scheme for name, assigned in job.plan.items() if assigned.scheme is not None}
    if layers:
        ignore = [name for name in dict.fromkeys([*job.plan, HEAD]) if name not in layers]
        found["quantization_config"] = quantization_config(layers, ignore)
    return found


def _write_tokenizer(job: Job, result: Path) -> None:
    if job.path.is_dir():
        for name in TOKENIZER_FILES:
            if (job.path / name).is_file():
                shutil.copyfile(job.path / name, result / name)
        return
    source = opened(job.path)
    tokenizer = read_tokenizer(source)
    (result / "tokenizer.json").write_text(tokenizer.backend.to_str(), encoding="utf-8")
    said: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": job.settings["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        **dict(tokenizer.special_tokens),
    }
    if tokenizer.template_source is not None:
        said["chat_template"] = tokenizer.template_source
    _write_json(result / "tokenizer_config.json", said)
    ends = sorted(tokenizer.eos_ids | set(job.settings.get("eos_token_id") or ()))
    sampling = recommended(source, job.model)
    generation: dict[str, Any] = {**sampling, "eos_token_id": ends}
    if sampling:
        generation["do_sample"] = sampling.get("temperature", 1) > 0
    if tokenizer.bos_id is not None:
        generation["bos_token_id"] = tokenizer.bos_id
    _write_json(result / "generation_config.json", generation)


def _write_json(file: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8")
