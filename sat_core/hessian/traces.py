"""Traces of the Hessian, of which one does not depend on the scale of each layer, by random vectors."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean, stdev

import torch
from torch import Tensor

from sat_core.hessian.objective import Objective, gaussians

PROBES = 10
"""Random vectors, unless other is asked: a product of the Hessian each."""


def trace(objective: Objective, *, probes: int = PROBES, seed: int = 0) -> tuple[float, float]:
    """The sum of the Hessian's eigenvalues, and the standard error of that estimate.

    The mean of ``v^T H v`` over standard normal vectors (Hutchinson 1989); a product of the Hessian each. Raises
    ValueError for fewer than two ``probes``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sat_core import Objective, trace
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
        >>> objective = Objective(model, torch.rand(20, 1, 8, 8), torch.randint(10, (20,)))
        >>> mean, error = trace(objective)
        >>> 0 < error < mean
        True
    """
    return _hutchinson(objective, gaussians(probes, objective.theta, seed))


def relative_flatness(objective: Objective, *, probes: int = PROBES, seed: int = 0) -> tuple[float, float]:
    """How sharp the loss is whatever the scale of each layer, and the standard error of that estimate; 0 is flat.

    ``sum over layers of sum_(s,t) <w_s, w_t> Tr H_(s,t)``, with w_s the weights (as a row) of a layer's neuron or
    filter s, and H_(s,t) the Hessian's block of two of them: the relative flatness of Petzka et al. (NeurIPS 2021), who
    take one layer; the sum over all is ours. A ReLU network of which a layer is scaled up and the next one down has the
    same value, but another eigenvalue and trace; not so where that is done to some neurons only. Biases and other
    one-dimensional parameters do not count.

    It is the mean of ``v^T H v`` over ``v = W R`` with R standard normal, all layers at once: their rows then have the
    covariance ``W W^T``, and layers do not correlate. Raises ValueError for fewer than two ``probes``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sat_core import Objective, relative_flatness
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10)).eval()
        >>> x, y = torch.rand(20, 1, 8, 8), torch.randint(10, (20,))
        >>> before, _ = relative_flatness(Objective(model, x, y))
        >>> with torch.no_grad():  # the same function
        ...     _ = model[1].weight.mul_(8), model[1].bias.mul_(8), model[3].weight.div_(8)
        >>> after, _ = relative_flatness(Objective(model, x, y))
        >>> abs(after / before - 1) < 1e-4
        True
    """
    return _hutchinson(objective, (_along_weights(objective, seed + probe) for probe in range(probes)))


def _along_weights(objective: Objective, seed: int) -> Tensor:
    """A random vector (P,), in each layer its weight matrix times a square normal one."""
    generator = torch.Generator().manual_seed(seed)

    def draw(weight: Tensor) -> Tensor:
        if weight.ndim < 2:
            return torch.zeros_like(weight)
        rows = weight.flatten(1)
        square = torch.randn(rows.shape[1], rows.shape[1], generator=generator, dtype=rows.dtype)
        return (rows @ square.to(rows.device)).view_as(weight)

    return torch.cat([draw(weight).flatten() for weight in objective.weights(objective.theta).values()])


def _hutchinson(objective: Objective, vectors: Iterable[Tensor]) -> tuple[float, float]:
    """Mean and standard error of ``v^T H v``."""
    draws = [float(v.double() @ objective.product(v).double()) for v in vectors]
    if len(draws) < 2:
        raise ValueError(f"{len(draws)} probes: two or more are needed")
    return fmean(draws), stdev(draws) / len(draws) ** 0.5
