"""H-SAT (Sitawarin et al. 2021): the difficulty is the top eigenvalue of the loss Hessian at x', scaled to [0, 1].

The paper's own approximation of that eigenvalue is not public. Ours is ``lambda_max(S) k``, with k = |h|^2 + 1: exactly
the top eigenvalue of the Hessian's block of the last layer; or, for deep networks, with k = |g|^2 / |r|^2: an estimate
of the largest Gauss-Newton eigenvalue by the sample's own gradient. `python -m sat_core audit` says how well each does.
"""

from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sat_core.attacks import Iterate, Perturbation, cross_entropy, uniform_start
from sat_core.defenses import Batch, SelfPaced
from sat_core.difficulty import (
    Capture,
    capture,
    classifier_gain,
    classifier_of,
    gauss_newton_gain,
    parametric_layers,
    top_softmax_eigenvalue,
)


class HSAT(SelfPaced):
    """PGD stops once psi_H exceeds lambda; with lambda = 1 this is Madry's, bit for bit.

    ``u = min(1, lambda_max(S) k / (K / 2))``: lambda_max(S) is at most 1/2, K is the batch's mean k where the attack
    starts. u is largest where the prediction flips and falls again behind it, and a sign step may jump over that peak:
    hence, ours, ``psi_H = u / 2`` where the prediction is right and ``1 - u / 2`` where it is wrong.
    """

    looks_inside: ClassVar[bool] = True
    metric: Literal["classifier", "gauss_newton"] = "classifier"

    def perturb(self, batch: Batch) -> Perturbation:
        limit, whole = self.curriculum(batch.epoch), self.metric == "gauss_newton"
        watched: list[nn.Module] = []
        if limit < 1:
            watched = parametric_layers(batch.model) if whole else [classifier_of(batch.model, batch.classes)]
        with capture(*watched, deltas=whole) as seen:
            tensors = (batch.y, batch.x.new_full((), limit), torch.zeros((), device=batch.x.device))
            return batch.attack(
                *(batch.model, batch.x, cross_entropy(batch.y)),
                start=uniform_start(batch.x, batch.attack.epsilon),
                keep_going=self.binding(limit, partial(self.is_easy, seen, *tensors)),
            )

    def is_easy(self, seen: Capture, y: Tensor, limit: Tensor, unit: Tensor, iterate: Iterate) -> Tensor:
        """psi_H <= limit, bool (n,), of what the layers have ``seen``; ``unit`` (), K / 2, is set by the first step."""
        y = y[iterate.rows]
        if self.metric == "gauss_newton":
            iterate.gradient  # noqa: B018  (its backward pass is what fills seen.deltas)
            gain = gauss_newton_gain(iterate.logits, y, seen.gradient_norm_squared())
        else:
            (features,) = seen.inputs.values()
            gain = classifier_gain(features)
        mean = gain.sum() / (gain > 0).sum().clamp_min(1)
        unit.copy_(torch.where(unit > 0, unit, mean.clamp_min(1e-12) / 2))
        u = (top_softmax_eigenvalue(iterate.logits) * gain / unit).clamp(max=1)
        return torch.where(iterate.logits.argmax(dim=1) == y, u / 2, 1 - u / 2) <= limit
