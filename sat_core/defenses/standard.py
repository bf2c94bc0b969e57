"""Ordinary training, the reference row: epsilon is 0, so x' = x."""

from typing import ClassVar

import torch

from sat_core.attacks import Perturbation
from sat_core.defenses import Batch, Defense


class Standard(Defense):
    """Cross entropy on clean images. Its weights are chosen by clean validation accuracy: it has no other aim."""

    selects_on: ClassVar[str] = "clean"

    def perturb(self, batch: Batch) -> Perturbation:
        return Perturbation(batch.x, torch.zeros_like(batch.y))
