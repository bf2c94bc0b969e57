"""Curvature of a loss in the weights: the loss as a function of them, Lanczos, and planes through it."""

from __future__ import annotations

from sat_core.hessian.lanczos import Eigenpairs, spectral_density, top_eigenpairs
from sat_core.hessian.objective import Objective, gaussians
from sat_core.hessian.planes import ImagePlane, grid, random_directions, weight_plane
from sat_core.hessian.traces import relative_flatness, trace

__all__ = [
    "Eigenpairs",
    "ImagePlane",
    "Objective",
    "gaussians",
    "grid",
    "lambda_max",
    "random_directions",
    "relative_flatness",
    "spectrum",
    "trace",
    "weight_plane",
]


def lambda_max(
    objective: Objective, count: int = 1, *, steps: int = 40, tolerance: float = 1e-3, seed: int = 0
) -> Eigenpairs:
    """The ``count`` largest eigenvalues of the Hessian, with eigenvectors and the residuals that bound their error.

    At most ``steps`` steps of Lanczos, fewer once the residuals are below ``tolerance`` times the largest eigenvalue.
    Holds ``steps`` vectors of as many numbers as there are weights.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sat_core import Objective, lambda_max
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
        >>> objective = Objective(model, torch.rand(20, 1, 8, 8), torch.randint(10, (20,)))
        >>> top = lambda_max(objective, count=2)
        >>> top.values[0] > top.values[1] > 0 and top.residuals[0] < 1e-2 * top.values[0]
        True
    """
    if not 1 <= count <= steps:
        raise ValueError(f"{count} eigenvalues cannot be had from {steps} steps of Lanczos")
    (start,) = gaussians(1, objective.theta, seed)
    return top_eigenpairs(objective.product, start, steps, tolerance, count)


def spectrum(
    objective: Objective, *, probes: int = 3, steps: int = 40, seed: int = 0
) -> tuple[list[float], list[float]]:
    """The density of the Hessian's eigenvalues, as nodes t and weights w that sum to 1, by Lanczos quadrature.

    ``sum w f(t)`` is an estimate of ``trace f(H) / P`` (Ghorbani, Krishnan and Xiao 2019): of the mean of f over the
    eigenvalues. ``probes`` random starts, ``steps`` products of the Hessian each.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sat_core import Objective, spectrum
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
        >>> objective = Objective(model, torch.rand(20, 1, 8, 8), torch.randint(10, (20,)))
        >>> nodes, weights = spectrum(objective, probes=2)
        >>> len(nodes) == len(weights), round(sum(weights), 5)
        (True, 1.0)
        >>> min(nodes) > -1e-5  # the loss of one linear layer is convex: no eigenvalue is negative
        True
    """
    return spectral_density(objective.product, gaussians(probes, objective.theta, seed), steps)
