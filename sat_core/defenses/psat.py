"""P-SAT (Sitawarin et al. 2021): the difficulty is the probability gap."""

from typing import ClassVar

from torch import Tensor

from sat_core.attacks import Iterate
from sat_core.defenses import Batch, SelfPaced
from sat_core.difficulty import probability_gap


class PSAT(SelfPaced):
    """PGD stops once ``max p_wrong - p_true`` exceeds lambda; with lambda = 1 this is Madry's, bit for bit."""

    difficulty_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def difficulty(self, batch: Batch, iterate: Iterate) -> Tensor:
        return probability_gap(iterate.logits, batch.y[iterate.rows])
