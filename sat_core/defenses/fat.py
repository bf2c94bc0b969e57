"""FAT, friendly adversarial training (Zhang et al. 2020): PGD stops soon after the network has erred."""

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sat_core.attacks import Iterate, Perturbation, cross_entropy, uniform_start
from sat_core.defenses import Batch, Defense
from sat_core.difficulty import probability_gap
from sat_core.fields import Natural, NonNegative, When, at


class FAT(Defense):
    """A sample may err ``tau`` times and go on; at the next mistake (psi_P > 0) it stops. Then cross entropy on x'.

    Algorithm 1 of the paper: with tau = 0, and omega = 0, it is P-SAT at lambda = 0; with tau as large as the number of
    steps Madry's. tau rises by one at each epoch of ``rises``, which as published are 50 and 90 of 120.
    """

    tau: Natural = 0
    rises: list[When] = Field([5 / 12, 3 / 4], description="epochs from which tau is larger by one")
    omega: NonNegative = Field(0.001, description="deviation of the noise added to every step, in pixel units; 0: none")
    start: Literal["uniform", "clean"] = "uniform"

    def resolved(self, epochs: int) -> Defense:
        return self.model_copy(update={"rises": [at(when, epochs) for when in self.rises]})

    def check(self, epochs: int) -> None:
        if self.rises != sorted(self.rises) or any(when > epochs for when in self.rises):
            raise ValueError(f"rises {self.rises} must increase and lie within 0..{epochs}")

    def curriculum_value(self, epoch: int) -> float:
        return float(self.tau + sum(epoch >= when for when in self.rises))

    def perturb(self, batch: Batch) -> Perturbation:
        x, y, attack = batch.x, batch.y, batch.attack
        left = torch.full_like(y, int(self.curriculum_value(batch.epoch)))
        start = uniform_start(x, attack.epsilon) if self.start == "uniform" else x
        rule = partial(may_err, y, left)
        return attack(batch.model, x, cross_entropy(y), start=start, keep_going=rule, noise=self.omega)


def may_err(y: Tensor, left: Tensor, iterate: Iterate) -> Tensor:
    """Whether a sample is right, or has mistakes ``left`` (N,), of which this one is taken off."""
    wrong = probability_gap(iterate.logits, y[iterate.rows]) > 0
    may = ~wrong | (left[iterate.rows] > 0)
    left.index_add_(0, iterate.rows, wrong.long(), alpha=-1)
    return may
