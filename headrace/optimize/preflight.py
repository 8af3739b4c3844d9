"""Says before any work what will be done to which layer and why, how large the result will be, and what it takes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.base.errors import Refused
from headrace.base.hardware import probe
from headrace.checkpoint.rows import stored_bytes
from headrace.nn.decoder import Decoder
from headrace.optimize.cost import Cost, cost, size_after
from headrace.optimize.job import Job, files_of
from headrace.optimize.work import check_disk
from headrace.quant.export import HEAD


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor of the model: what it gets ("as it is" or a scheme's name), why, and bytes before and after."""

    name: str
    shape: tuple[int, ...]
    becomes: str
    why: str
    before: int
    after: int


@dataclass(frozen=True)
class Preflight:
    """rows of all layers and the embedding; bytes of the source's files and of the result; what the run takes."""

    rows: tuple[Row, ...]
    before: int
    after: int
    cost: Cost
    notes: tuple[str, ...]


AS_IS = "as it is"
WORTH = 0.95
"""What is as large as this share of what it was is not worth what it loses."""


def preflight(job: Job) -> Preflight:
    """Look at a run before it begins. Raises Refused where memory or disk will not do."""
    model = job.build()
    rows = list(_rows(job, model))
    others = sum(
        tensor.numel() * job.dtype.itemsize
        for name, tensor in model.sources()
        if name.removesuffix(".weight") not in {row.name for row in rows}
    )
    after = sum(row.after for row in rows) + others
    found = Preflight(
        tuple(rows), files_size(job.path), after, cost(job, model, after), tuple(_notes(job, model, rows))
    )
    _check_room(job, found)
    return found


def files_size(path: Path) -> int:
    """Bytes of a model's weights on disk."""
    return sum(file.stat().st_size for file in files_of(path))


def _rows(job: Job, model: Decoder) -> Iterator[Row]:
    shape = model.shape
    table = shape.vocab * shape.hidden
    source = job.open()
    embedding = model.renamed("embed_tokens.weight")
    width = job.dtype.itemsize
    yield Row(
        embedding.removesuffix(".weight"),
        (shape.vocab, shape.hidden),
        AS_IS,
        "an embedding is looked up, not multiplied" + (", and is the output head" if job.tied else ""),
        stored_bytes(source, embedding),
        table * width,
    )
    for names, layer in model.linears():
        for name, rows in zip(names, layer.outputs, strict=True):
            assigned = job.plan[name]
            tied = name == HEAD and job.untied
            yield Row(
                name,
                (rows, layer.inputs),
                AS_IS if assigned.scheme is None else assigned.scheme.name,
                assigned.why + ("; it was the embedding and gets a weight of its own" if tied else ""),
                stored_bytes(source, f"{name}.weight"),
                size_after(job, name, rows, layer.inputs),
            )


def _notes(job: Job, model: Decoder, rows: list[Row]) -> Iterator[str]:
    if job.path.is_file():
        yield "the source is quantized already: what is lost is counted from its unpacked weights"
    elif job.settings.get("quantization_config"):
        yield "the source is quantized already and is unpacked first: better start from the original"
    rounded = [row for row in rows if row.becomes != AS_IS]
    # A head that gets a weight of its own was the embedding, the first row.
    sources = [rows[0] if job.untied and row.name == HEAD else row for row in rounded]
    before, after = 8 * sum(row.before for row in sources), 8 * sum(row.after for row in rounded)
    if after >= WORTH * before and (weights := sum(row.shape[0] * row.shape[1] for row in rounded)):
        yield (
            f"the layers to be rounded have {before / weights:.2f} bits per weight in the source and would have "
            f"{after / weights:.2f}; they lose, and save next to nothing"
        )
    for names, _ in model.linears():
        if len({job.plan[name].scheme for name in names}) > 1:
            yield (
                f"{', '.join(name.rpartition('.')[2] for name in names)} get different schemes: headrace and "
                "transformers load that, vLLM wants one for all of them"
            )
            break
    if job.ids_ST is None:
        yield "without calibration, scales know nothing of what weights are multiplied by"


def _check_room(job: Job, found: Preflight) -> None:
    check_disk(job.out, found.cost.disk, "write to another disk, or make room")
    memory = probe().free_bytes if job.device.type == "cpu" else torch.cuda.mem_get_info(job.device)[0]
    if found.cost.memory > memory:
        raise Refused(
            f"about {found.cost.memory / 1e9:.3g} GB of memory are needed; {memory / 1e9:.3g} GB are free",
            param="device",
            hint="close other programs, or take rtn, which needs no Hessians",
        )
