"""Curriculum on the strength of the attack (Cai et al. 2018): psi is the share of PGD steps taken."""

import torch
from torch import Tensor

from sat_core.attacks import Iterate
from sat_core.defenses import Batch, SelfPaced


class StepCurriculum(SelfPaced):
    """After k of K steps psi = k / K, the same for all samples: one step at lambda = 0, all K at 1."""

    def difficulty(self, batch: Batch, iterate: Iterate) -> Tensor:
        return torch.zeros_like(iterate.loss) + iterate.step / batch.attack.steps
