"""The judge: the official AutoAttack (Croce and Hein 2020), `standard`, L_inf, image by image."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyautoattack
import torch
from torch import Tensor, nn

from sat_core.attacks import check_images, frozen
from sat_core.errors import lacks_memory

log = logging.getLogger(__name__)

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
"""AutoAttack's `standard`, in its order."""
LENGTHS = {
    "apgd-ce": ("apgd", "n_iter"),
    "apgd-t": ("apgd_targeted", "n_iter"),
    "fab-t": ("fab", "n_iter"),
    "square": ("square", "n_queries"),
}
"""Where an attack is in an `AutoAttack`, and what says how many iterations it makes."""
FLAGS = {
    "randomized": "randomized defense",
    "dynamic": "dynamic defense",
    "probabilities": "output is a probability distribution",
    "zero gradients": "points with zero gradient",
}
"""What AutoAttack itself warns of -> words of its warning. ``square``, that Square lowered the accuracy by more than
0.2 points although it sees no gradients, is for whoever has the accuracies."""
SQUARE_LOWERS = 0.002


@dataclass(frozen=True)
class Verdict:
    """AutoAttack's verdict, image by image.

    ``prediction`` int64 (N,), on the clean images; ``broken_by``: the attack that broke each image, ``clean`` if it was
    misclassified to begin with, ``""`` if it stands; ``flags``: what AutoAttack warns of, keys of ``FLAGS`` and
    ``square``. A flagged accuracy may be too high.
    """

    prediction: Tensor
    broken_by: list[str]
    flags: frozenset[str] = frozenset()

    @property
    def clean(self) -> float:
        """Clean accuracy, in [0, 1]."""
        return 1 - self.broken_by.count("clean") / len(self.broken_by)

    @property
    def robust(self) -> float:
        """Robust accuracy, in [0, 1]."""
        return self.broken_by.count("") / len(self.broken_by)


def autoattack(
    model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float, seed: int = 0, batch_size: int = 500
) -> Verdict:
    """Judge any network on images x (N, C, H, W) in [0, 1] with labels y int64 (N,), by the official AutoAttack.

    Four classes or more: its targeted attacks need them. ``epsilon`` in pixel units; ``batch_size`` belongs to the
    verdict, since random numbers are drawn a batch at a time. The network normalises its own input and returns logits;
    it is judged in eval mode and comes back as it was. The verdict is pyautoattack's own: same seed, same batches, same
    images broken. Raises ValueError for images outside [0, 1], labels that are none, an epsilon outside (0, 1], and a
    network that gives no logits.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sat_core import autoattack
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> x = torch.rand(4, 1, 8, 8)
        >>> verdict = autoattack(model, x, model(x).argmax(dim=1), epsilon=0.3)
        >>> verdict.clean, verdict.robust, verdict.broken_by
        (1.0, 0.0, ['apgd-ce', 'apgd-ce', 'apgd-ce', 'apgd-ce'])
    """
    check_images(x)
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon {epsilon} is not in (0, 1]: it is in pixel units, such as 8 / 255")
    if not len(x) or y.shape != (len(x),) or y.dtype != torch.int64:
        raise ValueError(f"{len(x)} images need labels int64 ({len(x)},), one at least, not {y.dtype} {tuple(y.shape)}")
    with frozen(model), torch.no_grad():
        parts = [model(part) for part in x.split(batch_size)]
        if odd := [type(part).__name__ for part in parts if not isinstance(part, Tensor)]:
            raise ValueError(f"the network gives {odd[0]}, not a tensor of logits")
        logits = torch.cat(parts)
        if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 4:
            raise ValueError(f"AutoAttack needs logits (N, classes) of four or more, not {tuple(logits.shape)}")
        if not logits.isfinite().all():
            raise ValueError("the network's logits are not finite")
        if not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
            raise ValueError(f"labels from {y.min()} to {y.max()} are not those of {logits.shape[1]} classes")
        prediction = logits.argmax(dim=1)
        broken_by = ["" if right else "clean" for right in (prediction == y).tolist()]
        with torch.enable_grad(), warnings_of_autoattack() as flags:
            for attack in ATTACKS:
                batch_size = attack_standing(
                    *(model, x, y, attack),
                    epsilon=epsilon,
                    seed=seed,
                    classes=logits.shape[1],
                    broken_by=broken_by,
                    batch_size=batch_size,
                )
        if square_lowers(broken_by):
            flags.add("square")
    return Verdict(prediction, broken_by, frozenset(flags))


def square_lowers(broken_by: list[str]) -> bool:
    """Whether Square lowered the accuracy by more than it may, of images broken by these attacks."""
    return broken_by.count("square") > SQUARE_LOWERS * len(broken_by)


@contextmanager
def warnings_of_autoattack() -> Iterator[set[str]]:
    """Collect the flags that AutoAttack raises while the block runs."""
    flags: set[str] = set()

    def notice(record: logging.LogRecord) -> bool:
        flags.update(flag for flag, words in FLAGS.items() if words in record.getMessage())
        return True

    logger = logging.getLogger("auto-attack")
    logger.addFilter(notice)
    try:
        yield flags
    finally:
        logger.removeFilter(notice)


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
    iterations: int | None = None,
) -> int:
    """One attack of AutoAttack on the images of a block that are still standing; marks in ``broken_by`` what it breaks.

    The four attacks run one by one, each on the images that all before it left standing, which is what AutoAttack
    does itself; only so does one learn which attack broke which image, and only so can one resume. The targeted ones
    take the 9 likeliest wrong classes; with fewer than 10 classes, all of them. Returns ``batch_size``, or half of it,
    or a quarter.., where memory held no more: AutoAttack's random numbers then come otherwise. ``iterations``: of the
    attack, or of each of its targets, if not AutoAttack's own 100 (Square: 5,000); then it is no verdict.
    """
    standing = torch.tensor([i for i, by in enumerate(broken_by) if not by], device=x.device, dtype=torch.int64)
    if not len(standing):
        return batch_size
    adversary = pyautoattack.AutoAttack(model, eps=epsilon, norm="Linf", seed=seed, device=x.device)
    adversary.attacks_to_run = [attack]
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = min(9, classes - 1)
    if iterations is not None:
        part, length = LENGTHS[attack]
        setattr(getattr(adversary, part), length, iterations)
    x, y = x[standing], y[standing]
    while True:
        try:
            _, answers = adversary.run_standard_evaluation(x, y, batch_size=batch_size)
            break
        except RuntimeError as error:
            if batch_size == 1 or not lacks_memory(error):
                raise
        torch.cuda.empty_cache()  # not above: while the error is at hand, so is all that the attack held
        batch_size = -(-min(batch_size, len(x)) // 2)
        log.warning("out of memory in %s: going on with %d images at a time", attack, batch_size)
    for i in standing[answers != y].tolist():
        broken_by[i] = attack
    return batch_size
