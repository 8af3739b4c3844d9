"""Writes a model in the format of another program."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def run(
    model: str,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    scheme: Literal["q8_0", "q4_0"] = "q8_0",
) -> None:
    """Write a model as one GGUF file, which llama.cpp and its relatives run, and so do we.

    Tokenizer, chat template and recommended sampling go into the file, too. Architectures: Llama, Mistral, Qwen 2 and
    3. Quantized weights are unpacked and rounded again, but for those that are in the scheme already. The file is
    complete or not there.

    Parameters
    ----------
    model
        a known name, a folder, a .gguf file, or a repo id on the Hugging Face hub
    output
        the .gguf file to write; it must not exist
    scheme
        how matrices are stored; the output head has 8 bits in either
    """
    from headrace.checkpoint.bar import Bar
    from headrace.checkpoint.export_gguf import export_gguf
    from headrace.checkpoint.hub import find

    path = find(model)
    with Bar() as bar:
        export_gguf(path, output, scheme, lambda done, total: bar(f"writing {output}", done, total), model)
    print(f"{output}  {output.stat().st_size / 1e6:.1f} MB")  # noqa: T201 - the answer of this command
