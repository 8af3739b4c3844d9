"""A tiny random model on disk, and commands run in this process."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from headrace.cli import main
from headrace.models.llama import TINY

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = [
    "--dummy-weights",
    "--memory.share=0.02",
    "--memory.kv-blocks=80",
    "--schedule.rows=4",
    "--schedule.tokens=64",
    "--threads=1",
]
"""Flags that make the tiny model start at once and want little memory."""


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


class Closed(io.StringIO):
    """A standard input that is a terminal nobody types at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and a tokenizer of single bytes, and no weights."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE({piece: n for n, piece in enumerate([*SPECIALS, *alphabet])}, []))
    library.add_special_tokens(SPECIALS)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))
    config = TINY | {"vocab_size": library.get_vocab_size(), "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": TEMPLATE, "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"})
    )
    return folder


@pytest.fixture
def bare(tiny: Path, tmp_path: Path) -> Path:
    """The same model without a chat template."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text((tiny / name).read_text())
    return folder


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> Callable[..., Done]:
    """Runs `headrace WORDS`; `stdin` is what is piped in (None: a terminal), `small` adds SMALL and the tiny model."""

    def run(*words: str, stdin: str | None = None, small: bool = False) -> Done:
        monkeypatch.setattr(sys, "stdin", Closed() if stdin is None else io.StringIO(stdin))
        more = (
            [*SMALL, *([] if "--model" in words or "-m" in words else ["--model", str(tiny)])]
            if small
            else []
        )
        at = words.index("--") if "--" in words else len(words)
        code = main.run([*words[:at], *more, *words[at:]])
        return Done(code, *capsys.readouterr())

    return run
