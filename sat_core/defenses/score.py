"""SCORE (Pang et al. 2022): the squared error of probabilities in the place of cross entropy and KL divergence."""

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sat_core.attacks import Perturbation, frozen, normal_start, uniform_start
from sat_core.defenses import Batch, Defense
from sat_core.difficulty import one_hot
from sat_core.fields import NonNegative

CLIP = {"trades": 0.3, "at": 0.4}
"""As published for PreActResNet-18 on CIFAR-10 without generated data; with such data nothing is clipped."""


class SCORE(Defense):
    """``max(0, |p(x) - e_y|^2 + beta |p(x') - p(x)|^2 - bound)``, e_y the one-hot label: TRADES with squared errors.

    x' maximises the second square. With ``form: at`` both are Madry's: ``max(0, |p(x') - e_y|^2 - bound)``, and x'
    maximises it. ``clip`` c spares what fits well: the bound is the square that is left where p_y = 1 - c and the
    other classes share c alike, c^2 + c^2 / (classes - 1).
    """

    form: Literal["trades", "at"] = "trades"
    beta: NonNegative = 6.0
    clip: NonNegative | None = Field(None, description="as published if not set: 0.3 of trades, 0.4 of at")

    def perturb(self, batch: Batch) -> Perturbation:
        if self.form == "at":
            target, start = self.labels(batch), uniform_start(batch.x, batch.attack.epsilon)
        else:
            with torch.no_grad(), frozen(batch.model, batch.attack.batchnorm):
                target = batch.model(batch.x).softmax(dim=1)
            start = normal_start(batch.x).clamp_(0, 1)
        return batch.attack(batch.model, batch.x, partial(inner_loss, target), start=start)

    def outer_loss(self, batch: Batch, found: Perturbation) -> Tensor:
        c = CLIP[self.form] if self.clip is None else self.clip
        bound, y = c**2 + c**2 / (batch.classes - 1), self.labels(batch)
        adversarial = batch.model(found.x).softmax(dim=1)
        if self.form == "at":
            return (squared_error(adversarial, y) - bound).relu().mean()
        clean = batch.model(batch.x).softmax(dim=1)
        return (squared_error(clean, y) + self.beta * squared_error(adversarial, clean) - bound).relu().mean()

    def labels(self, batch: Batch) -> Tensor:
        """One-hot labels (N, classes)."""
        return one_hot(batch.y, batch.classes, batch.x)


def inner_loss(target: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
    """What x' maximises, (n,)."""
    return squared_error(logits.softmax(dim=1), target[rows])


def squared_error(p: Tensor, target: Tensor) -> Tensor:
    """|p - target|^2 of each sample, (N,) in [0, 2]."""
    return (p - target).square().sum(dim=1)
