"""`evaluation`: the judge."""

from __future__ import annotations

from pydantic import Field

from sat_core.fields import Count, Frozen, Natural


class Evaluation(Frozen):
    """AutoAttack, `standard`, L_inf, on the test images."""

    images: Count | None = Field(None, description="the first so many test images; all of them if absent")
    batch_size: Count = 512
    seed: Natural = 0
    shards: Count = Field(1, description="how many jobs share the work; on a CPU the result does not depend on it")
