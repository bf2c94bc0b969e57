"""MAIL-AT (Wang et al. 2021): samples count by their probabilistic margin at x', P-SAT's psi_P but for the sign."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sat_core.attacks import Perturbation, cross_entropy, normal_start
from sat_core.defenses import Batch
from sat_core.defenses._weighting import Weighted, weighted_mean
from sat_core.difficulty import probability_gap
from sat_core.fields import Number, Positive, When


class MAIL(Weighted):
    """Cross entropy on x' with weights ``sigmoid(-slope (PM - bias))``, PM = p_y(x') - max_{k != y} p_k(x') = -psi_P.

    The weights are scaled to a mean of 1 in a batch, as the paper says; the authors' code multiplies them by 3 instead
    (``factor: 3``). Before the epoch ``begin`` all are 1. As in their code PGD starts from x plus a little Gaussian
    noise; with ``start: uniform`` the defense is Madry's until ``begin``.
    """

    slope: Positive = 10.0
    bias: Number = -0.5
    begin: When = Field(0.75, description="the first epoch with weights")
    factor: Positive | None = Field(None, description="multiplies the weights, in place of a mean of 1")
    start: Literal["normal", "uniform"] = "normal"

    def perturb(self, batch: Batch) -> Perturbation:
        if self.start == "uniform":
            return super().perturb(batch)
        return batch.attack(batch.model, batch.x, cross_entropy(batch.y), start=normal_start(batch.x))

    def outer_loss(self, batch: Batch, found: Perturbation) -> Tensor:
        if batch.epoch < self.begin:
            return super().outer_loss(batch, found)
        logits = batch.model(found.x)
        losses = F.cross_entropy(logits, batch.y, reduction="none")
        weights = (self.slope * (probability_gap(logits.detach(), batch.y) + self.bias)).sigmoid()
        return weighted_mean(losses, weights) if self.factor is None else (losses * self.factor * weights).mean()
