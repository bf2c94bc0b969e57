"""MART (Wang et al. 2020): a boosted cross entropy on x', and consistency above all where x is misclassified."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sat_core.attacks import Perturbation, cross_entropy, normal_start
from sat_core.defenses import Batch, Defense
from sat_core.fields import NonNegative


class MART(Defense):
    """``BCE(x') + beta KL(p(x) || p(x')) (1 - p_y(x))``, the mean over samples; x' maximises the cross entropy.

    ``BCE(x') = -log p_y(x') - log(1 - max_{k != y} p_k(x'))``. As in the authors' code PGD
    starts from x plus a little Gaussian noise, and ``floor`` is added to the second logarithm's argument, which bounds
    that term at -log(floor): 0 is the formula as printed.
    """

    beta: NonNegative = 6.0
    floor: NonNegative = 1e-4

    def perturb(self, batch: Batch) -> Perturbation:
        return batch.attack(batch.model, batch.x, cross_entropy(batch.y), start=normal_start(batch.x))

    def outer_loss(self, batch: Batch, found: Perturbation) -> Tensor:
        y = batch.y[:, None]
        clean, adversarial = batch.model(batch.x).log_softmax(dim=1), batch.model(found.x).log_softmax(dim=1)
        divergence = F.kl_div(adversarial, clean, reduction="none", log_target=True).sum(dim=1)
        true = clean.gather(1, y)[:, 0].exp()
        boosted = self.boosted_cross_entropy(adversarial, y)
        return (boosted + self.beta * divergence * (1 - true)).mean()

    def boosted_cross_entropy(self, log_p: Tensor, y: Tensor) -> Tensor:
        """BCE of each sample (N,), from log p(x') (N, classes) and labels (N, 1); finite for every p."""
        rival = log_p.scatter(1, y, float("-inf")).argmax(dim=1, keepdim=True)
        others = log_p.scatter(1, rival, float("-inf")).logsumexp(dim=1)  # log(1 - p_rival)
        return -log_p.gather(1, y)[:, 0] - torch.logaddexp(others, torch.full_like(others, self.floor).log())
