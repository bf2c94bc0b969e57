"""`attack`: the PGD of the training loop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sat_core.fields import Count, Frozen, Positive


class Attack(Frozen):
    """The PGD of the training loop, in L_inf."""

    steps: Count = 10
    relative_step_size: Positive = Field(0.25, description="step_size / epsilon; may be a fraction such as 1/15")
    batchnorm: Literal["eval", "train"] = Field("eval", description="the model's mode while it is attacked in training")
