"""The Hessian of each sample's own loss."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from sat_core.hessian.lanczos import batched_top_eigenvalues

LANCZOS_STEPS = 10
CHUNK_BYTES = 2 * 2**30


def exact_curvature(model: nn.Module, x: Tensor, y: Tensor, steps: int = LANCZOS_STEPS) -> Tensor:
    """The largest eigenvalue of each sample's own loss Hessian in all parameters, (N,), by batched Lanczos."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]
    chunk = max(1, CHUNK_BYTES // (4 * sum(sizes) * steps))

    def unflatten(flat: Tensor) -> dict[str, Tensor]:
        return {n: f.view_as(parameters[n]) for n, f in zip(parameters, flat.split(sizes), strict=True)}

    def product(v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        def loss(p: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(functional_call(model, p, (x[None],)), y[None])

        tangent = jvp(grad(loss), (parameters,), (unflatten(v),))[1]
        return torch.cat([tangent[name].flatten() for name in parameters])

    def each(v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return vmap(product)(v, x, y)

    tops = []
    generator = torch.Generator().manual_seed(0)
    for i in range(0, len(x), chunk):
        xs, ys = x[i : i + chunk], y[i : i + chunk]
        start = torch.randn(len(xs), sum(sizes), generator=generator, dtype=x.dtype).to(x.device)
        tops.append(batched_top_eigenvalues(partial(each, x=xs, y=ys), start, steps))
    return torch.cat(tops)
