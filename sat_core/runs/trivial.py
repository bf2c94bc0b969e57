"""When a network has learnt nothing: the paper's "trivial classifier". Needs no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def as_good_as_a_constant(majority: float, n: int) -> float:
    """The accuracy that n predictions do not reach by chance, if always the same answer has ``majority``, both [0, 1].

    Two standard errors above it.
    """
    return majority + 2 * math.sqrt(majority * (1 - majority) / n)


def is_trivial(images: pd.DataFrame) -> bool:
    """Whether predictions are constant, or clean accuracy is within two standard errors of the majority class's share.

    ``images`` has columns ``label`` and ``prediction``, one row a test image.
    """
    majority = images["label"].value_counts(normalize=True).iloc[0]
    clean = (images["label"] == images["prediction"]).mean()
    return bool(images["prediction"].nunique() == 1 or clean <= as_good_as_a_constant(majority, len(images)))
