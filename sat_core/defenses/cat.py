"""CAT, customized adversarial training (Cheng et al. 2020): a radius and a label uncertainty for each image."""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sat_core.attacks import Perturbation, frozen, uniform_start
from sat_core.defenses import Batch, Defense
from sat_core.difficulty import one_hot
from sat_core.fields import Positive


class CAT(Defense):
    """Each image's radius grows by ``eta`` while it is still classified rightly there; labels are softened in step.

    eps_i = min(eps_i + eta, epsilon); y~ = (1 - c eps_i) onehot(y) + c eps_i Dirichlet(1); x' = PGD(eps_i,
    loss(., y~)); where x' is misclassified eps_i -= eta. The paper caps after the attack, which then may exceed epsilon
    by eta; its code before, as here. The weight c eps_i is capped at 1, beyond which the rule means nothing. ``loss``:
    ``ce`` on y~, or ``mix``, which adds the margin of Carlini and Wagner with ``kappa``.
    """

    eta: Positive = 0.005
    c: Positive = 10.0
    kappa: Positive = 10.0
    loss: Literal["ce", "mix"] = "mix"

    def initial_state(self, train_size: int, device: torch.device) -> dict[str, Tensor]:
        return {"epsilon": torch.zeros(train_size, device=device)}

    def perturb(self, batch: Batch) -> Perturbation:
        x, y, attack = batch.x, batch.y, batch.attack
        epsilon = (batch.state["epsilon"][batch.index] + self.eta).clamp(max=attack.epsilon)
        target = self.soften(y, epsilon, batch.classes)
        radius = epsilon[:, None, None, None]
        found = attack(
            *(batch.model, x, partial(self.inner_loss, y, target)),
            start=uniform_start(x, radius),
            epsilon=radius,
            step_size=radius * (attack.step_size / attack.epsilon),
        )
        with torch.no_grad(), frozen(batch.model, attack.batchnorm):
            fooled = batch.model(found.x).argmax(dim=1) != y
        batch.state["epsilon"][batch.index] = epsilon - self.eta * fooled
        return Perturbation(found.x, found.steps, target)

    def inner_loss(self, y: Tensor, target: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """What x' maximises, (n,)."""
        return self.per_sample(logits, y[rows], target[rows])

    def outer_loss(self, batch: Batch, found: Perturbation) -> Tensor:
        assert found.target is not None  # perturb made it
        return self.per_sample(batch.model(found.x), batch.y, found.target).mean()

    def soften(self, y: Tensor, epsilon: Tensor, classes: int) -> Tensor:
        """y~: (N, classes), rows that sum to 1."""
        weight = (self.c * epsilon).clamp(max=1)[:, None]
        noise = torch.distributions.Dirichlet(torch.ones(classes, device=y.device), validate_args=False).sample(y.shape)
        return (1 - weight) * one_hot(y, classes, noise) + weight * noise

    def per_sample(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """The loss of each sample (N,), the same for the attack and for training."""
        loss = F.cross_entropy(logits, target, reduction="none")
        if self.loss == "mix":
            true = logits.gather(1, y[:, None])[:, 0]
            other = logits.scatter(1, y[:, None], float("-inf")).amax(dim=1)
            loss = loss + (other - true).clamp(min=-self.kappa)
        return loss
