"""Eigenvalues of a symmetric matrix H (P, P) that is known only by its products ``v -> H v``.

Lanczos with full re-orthogonalisation (Golub and Van Loan, Matrix Computations, 10.3): it keeps its whole basis, k
vectors of P numbers, and finds no ghost copies of eigenvalues. Vectors have the dtype of the start vector;
the k x k matrix T = V^T H V is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""v (P,) -> H v (P,)."""


@dataclass(frozen=True)
class Krylov:
    """H on the span of v, Hv, .., H^(k-1) v: Ritz ``values`` (k,), ascending; ``basis`` (k, P), orthonormal.

    Column i of ``coefficients`` (k, k) is the i-th Ritz vector in that basis.
    """

    values: np.ndarray
    coefficients: np.ndarray
    basis: Tensor

    def vector(self, i: int) -> Tensor:
        """The i-th Ritz vector (P,), of norm 1."""
        vector = torch.as_tensor(self.coefficients[:, i]).to(self.basis) @ self.basis
        return vector / vector.norm()


@dataclass(frozen=True)
class Eigenpairs:
    """The largest eigenvalues, descending; ``vectors`` (count, P) of norm 1; ``residuals``: ``||H v - lambda v||``.

    Some eigenvalue of H lies within the residual of each value; near it, the error is about ``residual^2 / gap``.
    """

    values: list[float]
    vectors: Tensor
    residuals: list[float]
    steps: int


def lanczos(product: Product, start: Tensor, steps: int, tolerance: float = 0.0, count: int = 1) -> Krylov:
    """At most ``steps`` steps from ``start`` (P,), or fewer once the span is exhausted.

    With a ``tolerance``, stop when the ``count`` largest Ritz values have residuals below ``tolerance * max |value|``.
    """
    steps = min(steps, len(start))
    basis = start.new_empty(steps, len(start))
    basis[0] = start / start.norm()
    diagonal, beside = [], []
    for k in range(steps):
        image = product(basis[k])
        diagonal.append(float(image.double() @ basis[k].double()))
        for _ in range(2):  # once loses orthogonality where H nearly annihilates what is new
            image = image - (basis[: k + 1] @ image) @ basis[: k + 1]
        beside.append(float(image.double().norm()))
        values, coefficients = np.linalg.eigh(np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1))
        scale = np.abs(values).max()
        residuals = beside[-1] * np.abs(coefficients[-1, -count:])
        converged = tolerance > 0 and k + 1 >= count and residuals.max() <= tolerance * scale
        exhausted = beside[-1] <= 10 * torch.finfo(start.dtype).eps * scale
        if converged or exhausted or k + 1 == steps:
            return Krylov(values, coefficients, basis[: k + 1])
        basis[k + 1] = image / beside[-1]
    raise AssertionError("unreachable: the last step returns")


def top_eigenpairs(product: Product, start: Tensor, steps: int, tolerance: float, count: int = 1) -> Eigenpairs:
    """The ``count`` largest eigenvalues of H; their residuals are measured with a product each, not estimated."""
    krylov = lanczos(product, start, steps, tolerance, count)
    count = min(count, len(krylov.values))
    values = [float(value) for value in krylov.values[::-1][:count]]
    vectors = torch.stack([krylov.vector(-1 - i) for i in range(count)])
    residuals = [
        float((product(vector) - value * vector).double().norm()) for value, vector in zip(values, vectors, strict=True)
    ]
    return Eigenpairs(values, vectors, residuals, len(krylov.values))


def spectral_density(product: Product, starts: list[Tensor], steps: int) -> tuple[list[float], list[float]]:
    """Stochastic Lanczos quadrature: nodes t and weights w, summing to 1, with ``sum w f(t) ~ trace f(H) / P``.

    ``starts``: independent normal vectors (P,). Nodes are all their Ritz values, weighted by the squared first entry
    of the Ritz vector (Ubaru, Chen and Saad 2017; Ghorbani, Krishnan and Xiao 2019). Exact for polynomials f of
    degree 2 steps - 1 on each start's own measure; the error left is that of averaging over starts.
    """
    nodes, weights = [], []
    for start in starts:
        values, squares = measure(product, start, steps)
        nodes += values.tolist()
        weights += (squares / len(starts)).tolist()
    return nodes, weights


def measure(product: Product, start: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """One start's Ritz values and squared first entries. Its basis, the larger part of a GPU's memory, ends here."""
    krylov = lanczos(product, start, steps)
    return krylov.values, krylov.coefficients[0] ** 2


def batched_top_eigenvalues(product: Product, starts: Tensor, steps: int) -> Tensor:
    """The largest Ritz value (B,) of each of B matrices at once; ``product`` maps (B, P) to (B, P), row by row.

    Where a start's span is exhausted early its basis is filled up with zeros, which adds values of 0.
    """
    batch, size = starts.shape
    steps = min(steps, size)
    basis = starts.new_zeros(batch, steps, size)
    tridiagonal = torch.zeros(batch, steps, steps, dtype=torch.float64)
    v = starts / starts.norm(dim=1, keepdim=True)
    for k in range(steps):
        basis[:, k] = v
        image = product(v)
        tridiagonal[:, k, k] = (image.double() * v.double()).sum(dim=1).cpu()
        if k + 1 == steps:
            break
        seen = basis[:, : k + 1]
        for _ in range(2):
            image = image - torch.einsum("bk,bkp->bp", torch.einsum("bkp,bp->bk", seen, image), seen)
        beside = image.norm(dim=1)
        tridiagonal[:, k, k + 1] = tridiagonal[:, k + 1, k] = beside.double().cpu()
        scale = tridiagonal[:, : k + 1, : k + 1].abs().amax(dim=(1, 2)).to(beside)
        exhausted = beside <= 10 * torch.finfo(starts.dtype).eps * scale
        v = torch.where(exhausted, 0, 1 / beside)[:, None] * image
    return torch.linalg.eigvalsh(tridiagonal)[:, -1]
