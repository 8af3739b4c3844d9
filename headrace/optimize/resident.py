"""A model of which only those parts are in memory that are worked on: read when their turn comes, then dropped."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from headrace.base.memory import give_back
from headrace.checkpoint.load import HEAD
from headrace.checkpoint.rows import read_rows
from headrace.optimize.job import Job, blocks_of
from headrace.optimize.layer import unpack_into
from headrace.quant.scheme import Packed, Scheme

ROWS = 2048
"""Rows of an embedding or a head that are in memory at once."""
OPEN = 8
"""So many times rows are read before the file is opened anew."""
GROUP = 8192
"""Different tokens whose embeddings are looked up at once."""


class Resident:
    """A job's model, in float32 where it is filled, on the meta device elsewhere; turned where the recipe says so."""

    def __init__(self, job: Job):
        self._job = job
        self.model = job.build()
        self.model.tables(job.device)
        self.blocks = blocks_of(self.model)
        self.names = {layer: names for names, layer in self.model.linears()}
        self.source = job.open()
        self._turned = None if job.recipe.turn is None else job.recipe.turn.prepare(self.model, self.source)
        self._filled: set[str] = set()

    @property
    def embedding(self) -> str:
        """Its name in checkpoints."""
        return self.model.renamed("embed_tokens.weight")

    def embedded(self, ids_ST: Tensor) -> Iterator[Tensor]:
        """Hidden states before the first block, window by window."""
        scale = self.model.embed_tokens.scale
        count = max(1, GROUP // ids_ST.shape[1])
        for ids in ids_ST.split(count):
            wanted, where = ids.unique(return_inverse=True)
            found = torch.empty(len(wanted), self.model.shape.hidden, device="cpu")
            for start, rows in self.rows(self.embedding):
                chosen = (wanted >= start) & (wanted < start + len(rows))
                found[chosen] = rows[wanted[chosen] - start]
            for window in where:
                yield found[window] * scale

    def rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """(first row, some rows) of the embedding or the head, float32."""
        for start in range(0, self.model.shape.vocab, ROWS):
            if start % (ROWS * OPEN) == 0:
                self._reopen()
            rows = read_rows(self.source, self._there(name), start, min(start + ROWS, self.model.shape.vocab))
            yield start, rows if self._turned is None else self._turned.weight(name, rows)
        self._reopen()

    def fill(
        self, modules: Iterable[nn.Module], packed: Mapping[str, tuple[Scheme, Packed]] | None = None
    ) -> None:
        """Give parts of the model that are empty their memory and their weights: `packed` ones as they were rounded."""
        for each in modules:
            for name, parameter in list(each.named_parameters(recurse=False)):
                if parameter.is_meta:
                    memory = torch.empty(parameter.shape, dtype=torch.float32, device=self._job.device)
                    setattr(each, name, nn.Parameter(memory, requires_grad=False))
        for name, tensor in self.model.sources():
            if tensor.is_meta or name in self._filled:
                continue
            layer = name.removesuffix(".weight")
            if packed and layer in packed:
                unpack_into(tensor, *packed[layer])
            elif self._turned is None:
                self.source.read(name, tensor)
            else:
                tensor.copy_(self._turned.weight(name, self.source.read(self._there(name)).float()))
            self._filled.add(name)
        self._reopen()

    def empty(self, modules: Iterable[nn.Module]) -> None:
        """Take the memory of parts of the model away."""
        for each in modules:
            for name, parameter in list(each.named_parameters(recurse=False)):
                memory = torch.empty(parameter.shape, device="meta")
                setattr(each, name, nn.Parameter(memory, requires_grad=False))
        self._filled -= {name for name, tensor in self.model.sources() if tensor.is_meta}
        give_back()

    def _there(self, name: str) -> str:
        """Its name in the source: a head that is untied now was the embedding, whatever else lies there."""
        return self.embedding if name == HEAD and self._job.untied else name

    def _reopen(self) -> None:
        """Pages of files that were read count as ours until the files are closed."""
        del self.source
        self.source = self._job.open()
