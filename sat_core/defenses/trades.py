"""TRADES (Zhang et al. 2019): push the prediction on x' towards the one on x, which is trained for accuracy."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sat_core.attacks import Perturbation, frozen
from sat_core.defenses import Batch, Defense
from sat_core.fields import Positive


class TRADES(Defense):
    """``CE(x) + beta KL(p(x) || p(x'))``; x' maximises the same KL, from x plus a little Gaussian noise.

    ``reduction``: ``batchmean`` as published; ``mean`` divides by the classes too, as the SAT authors' runs did.
    """

    beta: Positive
    reduction: Literal["batchmean", "mean"] = "batchmean"

    def perturb(self, batch: Batch) -> Perturbation:
        with torch.no_grad(), frozen(batch.model, batch.attack.batchnorm):
            clean = batch.model(batch.x).softmax(dim=1)

        def divergence(logits: Tensor, rows: Tensor) -> Tensor:
            return F.kl_div(logits.log_softmax(dim=1), clean[rows], reduction="none").sum(dim=1)

        start = batch.x + 0.001 * torch.randn_like(batch.x)
        return batch.attack(batch.model, batch.x, divergence, start=start)

    def outer_loss(self, batch: Batch, found: Perturbation) -> Tensor:
        clean, adversarial = batch.model(batch.x), batch.model(found.x)
        divergence = F.kl_div(adversarial.log_softmax(dim=1), clean.softmax(dim=1), reduction="batchmean")
        beta = self.beta if self.reduction == "batchmean" else self.beta / clean.shape[1]
        return F.cross_entropy(clean, batch.y) + beta * divergence
