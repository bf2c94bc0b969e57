"""`landscape`: planes through the loss."""

from __future__ import annotations

from typing import Annotated

import pydantic
from pydantic import Field

from sat_core.fields import Frozen, Natural, Positive, Seed


class Landscape(Frozen):
    """Planes through the selected weights, and through the images; the sample is that of `curvature`."""

    points: Annotated[int, Field(ge=3, strict=True)] = Field(25, description="a side; odd, so that one is the centre")
    random: Positive = Field(1.0, description="half-width of the random plane, in norms of the filters")
    hessian: Positive = Field(1.0, description="half-width of the plane of the two top eigenvectors, in weight space")
    input: Positive = Field(1.0, description="half-width of the plane through the images, in epsilons")
    reattack: Natural = Field(0, description="points a side of the random plane attacked anew at each; 0: none")
    seed: Seed = 0

    @pydantic.field_validator("points", "reattack")
    @classmethod
    def _has_a_centre(cls, points: int) -> int:
        if points and points % 2 == 0:
            raise ValueError(f"{points} points a side have no centre; an odd number is needed")
        return points
