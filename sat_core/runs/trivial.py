"""When a network has learnt nothing: the paper's "trivial classifier". Needs no torch."""

from __future__ import annotations

import math

import pandas as pd


def is_trivial(images: pd.DataFrame) -> bool:
    """Whether predictions are constant, or clean accuracy is within two standard errors of the majority class's share.

    ``images`` has columns ``label`` and ``prediction``, one row a test image.
    """
    majority = images["label"].value_counts(normalize=True).iloc[0]
    noise = 2 * math.sqrt(majority * (1 - majority) / len(images))
    clean = (images["label"] == images["prediction"]).mean()
    return bool(images["prediction"].nunique() == 1 or clean <= majority + noise)
