"""Lanczos iteration with full re-orthogonalisation, for a batch of symmetric operators at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values of B symmetric operators of size P after ``steps`` products with each.

    ``product`` maps (B, P) to (B, P), row by row through its own operator; ``start`` (B, P) must not be 0. Returns
    values (B, k) ascending, their vectors' coordinates (B, k, k) in the Krylov basis (columns), and the basis
    (B, k, P), with k the lesser of ``steps`` and P. Where a smaller space is already invariant the rest of the basis
    is 0, and so are the values that belong to it. A Ritz pair's residual takes one more product: |A v - value v|.
    """
    batch, size = start.shape
    steps = min(steps, size)
    basis = start.new_zeros(batch, steps, size)
    tridiagonal = torch.zeros(batch, steps, steps, dtype=torch.float64)
    v = start / start.norm(dim=1, keepdim=True)
    for k in range(steps):
        basis[:, k] = v
        w = product(v)
        tridiagonal[:, k, k] = (w * v).sum(dim=1).double().cpu()
        for _ in range(2):  # once is not enough in floating point, twice is
            w = w - torch.einsum("bk,bkp->bp", torch.einsum("bkp,bp->bk", basis[:, : k + 1], w), basis[:, : k + 1])
        beta = w.norm(dim=1)
        if k + 1 == steps:
            break
        tridiagonal[:, k, k + 1] = tridiagonal[:, k + 1, k] = beta.double().cpu()
        exhausted = beta <= 100 * torch.finfo(w.dtype).eps * tridiagonal[:, : k + 1, : k + 1].abs().amax((1, 2)).to(w)
        v = torch.where(exhausted, 0, 1 / beta)[:, None] * w
    values, vectors = torch.linalg.eigh(tridiagonal)
    return values, vectors, basis
