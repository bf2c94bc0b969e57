"""Curriculum on the adversarial loss, one of the older notions of difficulty, mapped to [0, 1]."""

import torch
from torch import Tensor

from sat_core.attacks import Iterate
from sat_core.defenses import Batch, SelfPaced


class LossCurriculum(SelfPaced):
    """psi = 1 - exp(-cross entropy) = 1 - p_true, which rises with the loss."""

    def difficulty(self, batch: Batch, iterate: Iterate) -> Tensor:
        return -torch.expm1(-iterate.loss)
