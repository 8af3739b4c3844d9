"""How the small vocabularies of these tests are made."""

import functools
import io
import json
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

CORPUS = [
    "The water of the headrace reaches the wheel, and the wheel turns; the tailrace takes it back to the river.",
    "def f(x):\n    return x ** 2 + 1234  # naïve\n\n\nprint(f(3.14))\n\tif x == 0:\n\t\tpass",
    "Größe, façade, Ελληνικά, русский язык, 日本語のテキスト, 中文字符, 한국어, العربية, עברית",
    "emoji 😀👍🏽👨‍👩‍👧‍👦 and flags 🇩🇪🇯🇵 and combining e\u0301 a\u0308",
    "it's we're they'll I'D don't 2024-01-31 1,000,000.00 0x1F 50% $3.99",
    "   leading and trailing   \n \n  mixed \t whitespace \r\n",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level_metadata(pre: str = "smollm") -> dict[str, Any]:
    """GGUF metadata of a byte-level vocabulary of 500 tokens trained on CORPUS, and one user-defined token."""
    return _trained() | {"tokenizer.ggml.pre": pre}


@functools.cache
def _trained() -> dict[str, Any]:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(CORPUS * 3, trainer)
    model = json.loads(library.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [*tokens, "<think>"],
        "tokenizer.ggml.token_type": [3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)) + [4],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    }


def sentence_piece_model(**more: Any) -> bytes:
    """A tokenizer.model of SentencePiece BPE, trained on CORPUS."""
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    settings = {
        "model_type": "bpe", "vocab_size": 420, "byte_fallback": True, "character_coverage": 0.98,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": True,
        "user_defined_symbols": ["[INST]"], "minloglevel": 2, "num_threads": 1, "allow_whitespace_only_pieces": True,
    } | more  # fmt: skip
    lines = [line for text in CORPUS for line in text.split("\n") if line] * 3
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, **settings)
    return out.getvalue()
