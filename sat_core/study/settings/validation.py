"""`validation`: what is held out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sat_core.fields import Count, Frozen, Number, Positive


class Validation(Frozen):
    """Held-out part of the training images, attacked every epoch to choose the weights that are evaluated."""

    fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    steps: Count | None = Field(None, description="of its PGD; without, as in `attack`")
    relative_step_size: Positive | None = Field(None, description="of its PGD; without, as in `attack`")
