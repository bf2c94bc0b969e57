"""The judge: the official AutoAttack (Croce and Hein 2020), `standard`, L_inf, image by image."""

from __future__ import annotations

import logging

import pyautoattack
import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
"""AutoAttack's `standard`, in its order."""


def attack_standing(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: str,
    *,
    epsilon: float,
    seed: int,
    classes: int,
    broken_by: list[str],
    batch_size: int,
) -> int:
    """One attack of AutoAttack on the images of a block that are still standing; marks in ``broken_by`` what it breaks.

    The four attacks run one by one, each on the images that all before it left standing, which is what AutoAttack
    does itself; only so does one learn which attack broke which image, and only so can one resume. The targeted ones
    take the 9 likeliest wrong classes; with fewer than 10 classes, all of them. Returns ``batch_size``, or half of it,
    or a quarter.., where a GPU's memory held no more: AutoAttack's random numbers then come otherwise.
    """
    standing = torch.tensor([i for i, by in enumerate(broken_by) if not by], device=x.device, dtype=torch.int64)
    if not len(standing):
        return batch_size
    adversary = pyautoattack.AutoAttack(model, eps=epsilon, norm="Linf", seed=seed, device=x.device)
    adversary.attacks_to_run = [attack]
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = min(9, classes - 1)
    x, y = x[standing], y[standing]
    while True:
        try:
            x_adv, _ = adversary.run_standard_evaluation(x, y, batch_size=batch_size)
            break
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
        torch.cuda.empty_cache()  # not above: while the error is at hand, so is all that the attack held
        batch_size = -(-min(batch_size, len(x)) // 2)
        log.warning("out of GPU memory in %s: going on with %d images at a time", attack, batch_size)
    with torch.no_grad():
        broken = model(x_adv).argmax(dim=1) != y
    for i in standing[broken].tolist():
        broken_by[i] = attack
    return batch_size
