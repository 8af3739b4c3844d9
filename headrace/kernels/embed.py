"""Token embedding: rows of a table by id, times an optional constant (Gemma's sqrt of the hidden size)."""

from torch import Tensor
from torch.nn import functional

from headrace.kernels import configs
from headrace.kernels.launch import on_gpu


def embed_ref(ids_T: Tensor, table_VE: Tensor, scale: float = 1.0) -> Tensor:
    """The definition of embed."""
    rows = functional.embedding(ids_T, table_VE)
    return rows if scale == 1.0 else rows * scale


def embed(ids_T: Tensor, table_VE: Tensor, scale: float = 1.0) -> Tensor:
    """Rows [T, E] of the table, times scale; ids are integers in [0, V), which the kernel does not check."""
    if on_gpu(ids_T, table_VE) and table_VE.stride(1) == 1 and ids_T.dim() == 1:
        from headrace.kernels.gpu.embed import gather

        return gather(ids_T, table_VE, scale, configs.pdl(table_VE.device))
    return embed_ref(ids_T, table_VE, scale)
