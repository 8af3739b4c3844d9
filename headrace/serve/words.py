"""The tokenizer on its way from the engine, which knows the model's files, to the fronts, which load no torch."""

from pathlib import Path
from typing import Any

import msgspec

from headrace.text.tokenizer import Tokenizer

FILE = "tokenizer.msgpack"


def write_words(metadata: dict[str, Any], folder: Path) -> str:
    """Put what a .gguf file says of its tokenizer into a file in `folder`; where it is."""
    file = folder / FILE
    file.write_bytes(
        msgspec.msgpack.encode({k: v for k, v in metadata.items() if k.startswith("tokenizer.")})
    )
    return str(file)


def read_words(source: str | None) -> Tokenizer | None:
    """The tokenizer of a folder, or of a file that `write_words` made."""
    if source is None:
        return None
    path = Path(source)
    if path.name == FILE:
        return Tokenizer.from_gguf(msgspec.msgpack.decode(path.read_bytes()))
    return Tokenizer.from_folder(path)
