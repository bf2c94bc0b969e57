"""`validation`: what is held out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sat_core.fields import Frozen, Number


class Validation(Frozen):
    """Held-out part of the training images, attacked every epoch to choose the weights that are evaluated."""

    fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.1
