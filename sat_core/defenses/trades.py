"""TRADES (Zhang et al. 2019): push the prediction on x' towards the one on x, which is trained for accuracy."""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sat_core.attacks import Perturbation, frozen, normal_start
from sat_core.defenses import Batch, Defense
from sat_core.fields import Positive


class TRADES(Defense):
    """``CE(x) + beta KL(p(x) || p(x'))``; x' maximises the same KL, from x plus a little Gaussian noise.

    ``reduction``: ``batchmean`` as published; ``mean`` divides by the classes too, as the SAT authors' runs did.
    ``sequence``: x and x' pass through the network one after the other, as published, or ``concatenated``, as one
    batch whose statistics batch norm shares, which their later work (dual-domain-at) holds to be right.
    """

    beta: Positive
    reduction: Literal["batchmean", "mean"] = "batchmean"
    sequence: Literal["separate", "concatenated"] = "separate"

    def perturb(self, batch: Batch) -> Perturbation:
        with torch.no_grad(), frozen(batch.model, batch.attack.batchnorm):
            clean = batch.model(batch.x).softmax(dim=1)
        return batch.attack(batch.model, batch.x, partial(divergence, clean), start=normal_start(batch.x))

    def outer_loss(self, batch: Batch, found: Perturbation) -> Tensor:
        if self.sequence == "separate":
            clean, adversarial = batch.model(batch.x), batch.model(found.x)
        else:
            clean, adversarial = batch.model(torch.cat([batch.x, found.x])).chunk(2)
        log_p, log_q = clean.log_softmax(dim=1), adversarial.log_softmax(dim=1)  # p itself may be 0, its gradient NaN
        apart = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        beta = self.beta if self.reduction == "batchmean" else self.beta / clean.shape[1]
        return F.cross_entropy(clean, batch.y) + beta * apart


def divergence(clean: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
    """KL(p(x) || p(x')) of each sample (n,), which x' maximises; ``clean``: p(x) (N, classes)."""
    return F.kl_div(logits.log_softmax(dim=1), clean[rows], reduction="none").sum(dim=1)
