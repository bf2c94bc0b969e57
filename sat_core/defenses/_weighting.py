"""What defenses that weight the samples of a batch share."""

from torch import Tensor

from sat_core.defenses import Defense
from sat_core.fields import When, at


class Weighted(Defense):
    """A defense that weights samples from the epoch ``begin`` on."""

    begin: When

    def resolved(self, epochs: int) -> Defense:
        return self.model_copy(update={"begin": at(self.begin, epochs)})

    def check(self, epochs: int) -> None:
        if self.begin > epochs:
            raise ValueError(f"begin {self.begin} is not in 0..{epochs}")

    def begins(self) -> int:
        return int(self.begin)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """The mean of losses (N,) under weights (N,) >= 0, which are scaled to a mean of 1."""
    return (losses * (weights / weights.mean())).mean()
