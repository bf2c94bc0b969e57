"""The images that curvature and landscapes are measured on, and what is measured of a network on them.

The loss is the same for every defense, whatever it trained on: ``L(theta) = sum_i CE(f_theta(x'_i), y_i) / n`` with x'
made once by the training PGD (never stopped, seeded) against the weights at hand, and then held fixed. BatchNorm uses
its running statistics, as the attack and the evaluation do.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from sat_core.attacks import cross_entropy, uniform_start
from sat_core.errors import ConfigError
from sat_core.hessian import Eigenpairs, Objective, lambda_max
from sat_core.runs.data import load
from sat_core.runs.network import measuring_attack, predict
from sat_core.runs.trivial import is_trivial
from sat_core.study import Run


def sample(run: Run, device: torch.device) -> tuple[Tensor, Tensor]:
    """The images (n, C, H, W) and labels (n,) that all runs of a dataset are measured on: drawn once, by seed."""
    config = run.curvature
    (images,) = load(run, config.split)
    generator = torch.Generator().manual_seed(config.seed)
    x, y = images.batch(torch.randperm(len(images), generator=generator)[: config.images])
    return x.to(device), y.to(device)


def adversarial(run: Run, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """x' of :func:`sample`'s images: the training PGD on the cross entropy, from a start that depends on the seed."""
    torch.manual_seed(run.curvature.seed)
    attack, size = measuring_attack(run), run.curvature.batch_size
    blocks = zip(x.split(size), y.split(size), strict=True)
    return torch.cat([attack(model, a, cross_entropy(b), start=uniform_start(a, attack.epsilon)).x for a, b in blocks])


def measure(
    run: Run, model: nn.Module, x: Tensor, y: Tensor, count: int = 1
) -> tuple[dict[str, Any], Objective, Eigenpairs]:
    """One network on the sample: lambda_max and what must stand beside it, the loss itself, ``count`` eigenpairs."""
    config = run.curvature
    objective = Objective(model, adversarial(run, model, x, y), y, config.batch_size)
    loss, accuracy = objective(objective.theta)
    if not math.isfinite(loss):
        raise ConfigError(f"{run.id.path}: its loss is {loss}, so it has no curvature; the training has diverged")
    top = lambda_max(objective, count, steps=config.steps, tolerance=config.tolerance, seed=config.seed)
    prediction = predict(model, x)
    record = {
        "lambda_max": top.values[0],
        "residual": top.residuals[0],
        "lanczos_steps": top.steps,
        "loss": loss,
        "clean": float((prediction == y).double().mean()),
        "adversarial": accuracy,
        "n": len(y),
        "trivial": is_trivial(pd.DataFrame({"label": y.cpu(), "prediction": prediction.cpu()})),
    }
    return record, objective, top
