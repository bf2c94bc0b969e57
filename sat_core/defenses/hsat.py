"""H-SAT (Sitawarin et al. 2021): the difficulty is the top eigenvalue of the loss Hessian at x', scaled to [0, 1].

The paper's own approximation of that eigenvalue is not public. Ours is the exact top eigenvalue of the Hessian's
block of the last layer, in closed form; or, for deep networks with batch norm, where that does not track the whole
Hessian, the Gauss-Newton curvature along the sample's own gradient. `python -m sat_core audit` says how well each does.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from sat_core.attacks import Iterate, Perturbation, cross_entropy
from sat_core.defenses import Batch, SelfPaced
from sat_core.difficulty import (
    capture,
    classifier_curvature,
    gauss_newton_curvature,
    parametric_layers,
)


class HSAT(SelfPaced):
    """PGD from the clean image stops for good before the first iterate whose psi_H exceeds lambda.

    The last iterate is not asked. psi_H is not monotone (it vanishes for confident wrong predictions too), hence the
    stop for good. It is ``min(1, curvature / Q)``; Q follows the 99th percentile of the curvatures met in training,
    half old, half new.
    """

    looks_inside: ClassVar[bool] = True
    metric: Literal["classifier", "gauss_newton"] = "classifier"

    def initial_state(self, train_size: int, device: torch.device) -> dict[str, Tensor]:
        return {"scale": torch.zeros((), device=device)}

    def perturb(self, batch: Batch) -> Perturbation:
        limit, scale = self.curriculum(batch.epoch), batch.state["scale"]
        layers = parametric_layers(batch.model)
        met: list[Tensor] = []
        whole = self.metric == "gauss_newton" and limit < 1
        with capture(*(layers if whole else layers[-1:]), deltas=whole) as seen:

            def keep_going(iterate: Iterate) -> Tensor:
                if self.metric == "gauss_newton":
                    iterate.gradient  # noqa: B018  (its backward pass is what fills seen.deltas)
                    y = batch.y[iterate.rows]
                    raw = gauss_newton_curvature(iterate.logits, y, seen.gradient_norm_squared())
                else:
                    raw = classifier_curvature(iterate.logits, seen.inputs[layers[-1]])
                met.append(raw)
                unit = torch.where(scale > 0, scale, quantile(raw))
                return (raw / unit).clamp(max=1) <= limit

            found = batch.attack(
                *(batch.model, batch.x, cross_entropy(batch.y)),
                start=batch.x,
                keep_going=self.binding(limit, keep_going),
                keep_last_allowed=True,
            )
        if met:
            new = quantile(torch.cat(met))
            scale.copy_(torch.where(scale > 0, (scale + new) / 2, new))
        return found


def quantile(raw: Tensor) -> Tensor:
    """The 99th percentile; never 0, so that a scale can be divided by."""
    return raw.quantile(0.99).clamp_min(1e-12)
