"""`curvature`: the Hessian of the loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sat_core.fields import Count, Frozen, Natural, Positive, Seed


class Curvature(Frozen):
    """The Hessian of the adversarial loss on a fixed sample of images, at the selected weights and at every snapshot.

    Training images by default: the paper's claim is about the loss that training has to descend.
    """

    split: Literal["train", "validation", "test"] = "train"
    images: Count = Field(500, description="size of the sample, which is the same for every run of a dataset")
    batch_size: Count = Field(100, description="images at a time; all at once take more memory and less time")
    steps: Annotated[int, Field(ge=2, strict=True)] = Field(40, description="of Lanczos, at most")
    tolerance: Positive = Field(1e-3, description="of ||Hv - lambda v|| / lambda_max, at which Lanczos stops")
    probes: Natural = Field(3, description="random vectors of the spectral density; 0: no density")
    seed: Seed = 0
