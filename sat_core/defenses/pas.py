"""PAS, periodic adversarial scheduling (Liu et al. 2020): the radius rises with a cosine and is clipped at epsilon."""

from math import cos, pi
from typing import Literal

from pydantic import Field

from sat_core.attacks import Perturbation
from sat_core.defenses import Batch, Defense
from sat_core.defenses.epsilon_curriculum import in_ball
from sat_core.fields import Positive, When, at


class PAS(Defense):
    """A curriculum on the radius: ``psi = |delta|_inf / epsilon``, ``lambda_t = min(1, peak (1 - cos(pi t)) / 2)``.

    t runs from 0 to 1 in each period, of which ``ends`` are the ends; after the last lambda stays
    where it came to. As published the peak is 16/255 for 8/255 on CIFAR-10, and 0.6 for 0.4 on MNIST (peak: 1.5). In
    the authors' code PGD starts no further from x than a step.
    """

    peak: Positive = Field(2.0, description="what the cosine reaches, in epsilons; what exceeds 1 is clipped")
    ends: list[When] = Field([1.0], min_length=1, description="epochs at which a period ends")
    start: Literal["step", "ball"] = "step"

    def resolved(self, epochs: int) -> Defense:
        return self.model_copy(update={"ends": [at(when, epochs) for when in self.ends]})

    def check(self, epochs: int) -> None:
        if self.ends != sorted(set(self.ends)) or not 0 < self.ends[0] <= self.ends[-1] <= epochs:
            raise ValueError(f"ends {self.ends} must increase and lie in 1..{epochs}")

    def curriculum_value(self, epoch: int) -> float:
        first = max([0, *(end for end in self.ends[:-1] if end <= epoch)])
        last = next(end for end in self.ends if end > first)
        t = min(1.0, (epoch - first) / (last - first))
        return min(1.0, self.peak * (1 - cos(pi * t)) / 2)

    def perturb(self, batch: Batch) -> Perturbation:
        return in_ball(batch, self.curriculum_value(batch.epoch), within_a_step=self.start == "step")
