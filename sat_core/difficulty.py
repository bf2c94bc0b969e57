"""Difficulty psi and the curriculum lambda: SAT's constraint ``psi(x + delta) <= lambda``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from sat_core.config import Count, Frozen, Natural, Number


def probability_gap(logits: Tensor, y: Tensor) -> Tensor:
    """psi_P of P-SAT: the largest wrong-class probability minus the true class's (paper, P-SAT).

    logits (N, classes), y int64 (N,) -> (N,) in [-1, 1]; above 0 exactly where the prediction is wrong.
    """
    p = logits.float().softmax(dim=1)
    true = p.gather(1, y[:, None])[:, 0]
    wrong = p.scatter(1, y[:, None], -1.0).amax(dim=1)
    return wrong - true


class Curriculum(Frozen):
    """lambda as a function of the epoch, from ``start`` to ``stop``.

    ``steps``: one equal jump towards ``stop`` at the beginning of each epoch in ``epochs``;
    ``linear``: ``epochs`` are the first and the last epoch of a straight line. Epochs count from 0.
    """

    kind: Literal["steps", "linear"]
    epochs: list[Natural] = Field(min_length=1)
    start: Number = 0.0
    stop: Number = 1.0

    def check(self, epochs: Count) -> None:
        """Raise ValueError unless the schedule is increasing and over before the last of ``epochs`` epochs ends."""
        if self.epochs != sorted(set(self.epochs)):
            raise ValueError(f"curriculum.epochs {self.epochs} must increase")
        if self.kind == "linear" and len(self.epochs) != 2:
            raise ValueError(f"a linear curriculum takes two epochs, first and last, not {self.epochs}")
        if self.epochs[-1] >= epochs:
            raise ValueError(f"curriculum.epochs {self.epochs} reach beyond the last epoch ({epochs - 1})")

    def __call__(self, epoch: int) -> float:
        if self.kind == "steps":
            done = sum(epoch >= e for e in self.epochs) / len(self.epochs)
        else:
            first, last = self.epochs
            done = min(1.0, max(0.0, (epoch - first) / (last - first)))
        return self.start + done * (self.stop - self.start)
