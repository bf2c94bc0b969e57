"""Dynamic adversarial training (Wang et al. 2019): PGD stops once it has converged well enough, as FOSC tells."""

from functools import partial

from pydantic import Field
from torch import Tensor

from sat_core.attacks import Iterate, Perturbation, cross_entropy, uniform_start
from sat_core.defenses import Batch, Defense
from sat_core.fields import Positive, When, at


class Dynamic(Defense):
    """A sample stops when ``FOSC <= c_t = max(0, c_max (1 - t / horizon))``: late epochs ask for full convergence."""

    c_max: Positive = 0.5
    horizon: When = Field(description="the epoch T' from which c_t is 0")

    def resolved(self, epochs: int) -> Defense:
        return self.model_copy(update={"horizon": at(self.horizon, epochs)})

    def check(self, epochs: int) -> None:
        if not 0 < self.horizon <= epochs:
            raise ValueError(f"horizon {self.horizon} is not in 1..{epochs}")

    def curriculum_value(self, epoch: int) -> float:
        return max(0.0, self.c_max * (1 - epoch / self.horizon))

    def perturb(self, batch: Batch) -> Perturbation:
        limit, x = self.curriculum_value(batch.epoch), batch.x
        rule = partial(unconverged, x, batch.attack.epsilon, x.new_full((), limit))
        return batch.attack(
            batch.model,
            x,
            cross_entropy(batch.y),
            start=uniform_start(x, batch.attack.epsilon),
            keep_going=rule if limit else None,  # FOSC is 0 only where a step would lead nowhere
        )


def unconverged(x: Tensor, epsilon: float, limit: Tensor, iterate: Iterate) -> Tensor:
    """Whether FOSC exceeds the limit, bool (n,)."""
    return fosc(iterate, x[iterate.rows], epsilon) > limit


def fosc(iterate: Iterate, x: Tensor, epsilon: float) -> Tensor:
    """First-order stationary condition (n,) >= 0 in the ball around the clean x: 0 where no step can raise the loss.

    ``epsilon |g|_1 - <x_k - x, g>`` with g the gradient of the sample's own loss (Wang et al. 2019, eq. 4).
    """
    g, delta = iterate.gradient.flatten(1), (iterate.x - x).flatten(1)
    return epsilon * g.abs().sum(dim=1) - (delta * g).sum(dim=1)
