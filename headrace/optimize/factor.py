"""The triangular factor of a Hessian, made where the Hessian lies: rounding column by column needs nothing else.

Rounding errors D = W' - W of a row cost D H D^T. With H = L L^T for a lower triangular L that is the sum over columns i
of L_ii^2 (D_i + sum over j > i of D_j L_ji / L_ii)^2: going from the last column to the first, each is best rounded
to what is nearest to its weight less the second term. That is GPTQ (Frantar et al. 2023) without an inverse; that the
two are the same is theorem 6 of Chee et al. 2023, "QuIP", where it goes by the name of LDLQ.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.base.errors import Broken
from headrace.optimize.inputs import Inputs

PANEL = 256
"""Columns factored at once."""
DAMPED = {"damp": (1e-9, 1)}
"""Least and largest damping that a pass may ask for."""
TRIES = 6
"""Ten times the damping each, should rounding have cost the matrix its definiteness."""


@dataclass(frozen=True)
class Factor:
    """lower_KK [K, K] with H[order][:, order] + damping = L L^T; only what is on or below the diagonal counts.

    order   int64 [K]: row i of L belongs to column order[i] of the weight. Columns are to be rounded from the last
            row to the first
    """

    lower_KK: Tensor
    order: Tensor


def factored(inputs: Inputs, damp: float, sort: bool) -> Factor:
    """The factor of what `inputs` hold, made once: the Hessian's memory is given up for it.

    damp    share of the mean diagonal added to the diagonal
    sort    columns with the largest inputs are rounded first, when others can still make up for it ("static activation
            order": groups stay as they are); otherwise from left to right
    """
    asked = (damp, sort)
    if inputs.factor is not None:
        assert inputs.factor[0] == asked, "one Hessian, two ways of factoring it"
        return inputs.factor[1]
    hessian_KK = inputs.hessian_KK
    assert hessian_KK is not None, "no pass said that it needs the Hessian"
    diagonal = hessian_KK.diagonal().clone()
    order = torch.arange(len(diagonal), device=diagonal.device).flip(0)
    if sort:
        order = torch.argsort(diagonal, stable=True)
    permute(hessian_KK, order)
    found = Factor(damped_cholesky(hessian_KK, damp), order)
    inputs.hessian_KK, inputs.factor = None, (asked, found)
    return found


def permute(matrix_KK: Tensor, order: Tensor) -> None:
    """matrix[order][:, order], in place: rows along the cycles of the permutation, then columns."""
    to = order.tolist()
    seen = [False] * len(to)
    for start in range(len(to)):
        if seen[start] or to[start] == start:
            continue
        spare = matrix_KK[start].clone()
        at = start
        while to[at] != start:
            matrix_KK[at] = matrix_KK[to[at]]
            seen[at] = True
            at = to[at]
        matrix_KK[at] = spare
        seen[at] = True
    for rows in matrix_KK.split(PANEL):
        rows.copy_(rows[:, order])


def damped_cholesky(matrix_KK: Tensor, damp: float) -> Tensor:
    """L of the matrix + damp x its mean diagonal, below its diagonal and on it; above, the matrix stays.

    A matrix that is all zero counts as the identity. Raises Broken where there is no such L for any damping.
    """
    diagonal = matrix_KK.diagonal().clone()
    mean = float(diagonal.mean())
    if not 0 <= mean < float("inf"):
        raise Broken("inputs of a layer are not finite", hint="the checkpoint may be damaged")
    for attempt in range(TRIES):
        matrix_KK.diagonal().copy_(diagonal + (mean * damp * 10**attempt or 1.0))
        if _cholesky(matrix_KK):
            return matrix_KK
        for start in range(0, len(matrix_KK), PANEL):  # what is above the diagonal is still as it was
            stop = start + PANEL
            matrix_KK[start:stop, :start] = matrix_KK[:start, start:stop].T
            block = matrix_KK[start:stop, start:stop]
            block.copy_(block.triu() + block.triu(1).T)
    raise Broken("the Hessian of a layer cannot be factored", hint="calibrate with more tokens")


def _cholesky(matrix_KK: Tensor) -> bool:
    """In place, panel after panel (left-looking); whether it went well. Reads what is on and below the diagonal."""
    for start in range(0, len(matrix_KK), PANEL):
        stop = min(start + PANEL, len(matrix_KK))
        panel = matrix_KK[start:, start:stop].clone()
        if start:
            panel.addmm_(matrix_KK[start:, :start], matrix_KK[start:stop, :start].T, alpha=-1)
        width = stop - start
        lower, info = torch.linalg.cholesky_ex(panel[:width])
        if int(info):
            return False
        block = matrix_KK[start:stop, start:stop]
        block.copy_(lower.tril() + block.triu(1))
        if stop < len(matrix_KK):
            below = torch.linalg.solve_triangular(lower, panel[width:].T, upper=False)
            matrix_KK[stop:, start:stop] = below.T
    return True
