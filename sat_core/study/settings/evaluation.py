"""`evaluation`: the judge."""

from __future__ import annotations

from typing import Literal

import pydantic
from pydantic import Field

from sat_core.fields import Count, Frozen, Seed

Precision = Literal["float32", "tf32"]


class Evaluation(Frozen):
    """AutoAttack, `standard`, L_inf, on the test images."""

    images: Count | None = Field(
        None,
        description="the first so many test images, in the order of the dataset; all of them if absent. MNIST's order "
        "is not random: its two halves come from different collections",
    )
    batch_size: Count = 512
    seed: Seed = 0
    precision: Precision = Field(
        "float32", description="of the layers; tf32 where a GPU has it, float32 elsewhere: the record says which"
    )
    weights: list[Literal["best", "last"]] = Field(
        ["best"], description="the epochs to judge: the selected one, and the last beside it (robust overfitting)"
    )
    iterations: Count | None = Field(
        None, description="of each attack, instead of AutoAttack's own; in rehearsals only, as it is no verdict then"
    )
    shards: Count = Field(1, description="how many jobs share the work; on a CPU the result does not depend on it")

    @pydantic.field_validator("weights")
    @classmethod
    def _best_first(cls, weights: list[str]) -> list[str]:
        if weights not in (["best"], ["best", "last"]):
            raise ValueError(f"[best] or [best, last] is expected, not {weights}")
        return weights
