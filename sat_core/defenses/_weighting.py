"""What defenses that weight the samples of a batch share."""

from torch import Tensor


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """The mean of losses (N,) under weights (N,) >= 0, which are scaled to a mean of 1."""
    return (losses * (weights / weights.mean())).mean()
