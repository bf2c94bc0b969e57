"""GAIRAT (Zhang et al. 2021): samples count by how few PGD steps it takes to fool the network about them."""

from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sat_core.attacks import Iterate, Perturbation, cross_entropy, uniform_start, while_correct
from sat_core.defenses import Batch
from sat_core.defenses._weighting import Weighted, weighted_mean
from sat_core.fields import Number, When


class GAIRAT(Weighted):
    """Cross entropy on x' with weights ``(1 + tanh(lam + 5 (1 - 2 kappa / K))) / 2``, scaled to a mean of 1 in a batch.

    kappa counts the iterates, of the K that a step was taken from, which the network had right (paper,
    algorithm 1). PGD is Madry's; so is the whole defense before the epoch ``begin`` (as published 59, from 0, of 120).
    """

    lam: Number = Field(-1.0, description="the paper's lambda; the larger, the more alike the weights")
    begin: When = Field(59 / 120, description="the first epoch with weights")

    def perturb(self, batch: Batch) -> Perturbation:
        if batch.epoch < self.begin:
            return super().perturb(batch)
        x, y, attack = batch.x, batch.y, batch.attack
        kappa = x.new_zeros(len(x))
        start = uniform_start(x, attack.epsilon)
        found = attack(batch.model, x, cross_entropy(y), start=start, keep_going=partial(counted, y, kappa))
        weights = (2 * (self.lam + 5 * (1 - 2 * kappa / attack.steps))).sigmoid()  # tanh would round to -1
        return Perturbation(found.x, found.steps, weights=weights)

    def outer_loss(self, batch: Batch, found: Perturbation) -> Tensor:
        if found.weights is None:
            return super().outer_loss(batch, found)
        return weighted_mean(F.cross_entropy(batch.model(found.x), batch.y, reduction="none"), found.weights)


def counted(y: Tensor, kappa: Tensor, iterate: Iterate) -> Tensor:
    """Always True; adds 1 to ``kappa`` (N,) where the network is right."""
    right = while_correct(y)(iterate)
    kappa.index_add_(0, iterate.rows, right.to(kappa))
    return torch.ones_like(right)
