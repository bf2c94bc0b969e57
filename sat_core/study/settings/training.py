"""`training`: how the weights are found."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from sat_core.fields import Count, Frozen, Natural, Number, Positive


class Training(Frozen):
    """SGD with momentum; the learning rate is divided by 10 at the start of each milestone epoch."""

    epochs: Count
    batch_size: Count = 128
    lr: Positive
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[Number, Field(ge=0)] = 5e-4
    milestones: list[Count] = Field([], description="epochs (counted from 0) at which lr is divided by 10")
    augmentation: list[Literal["crop", "flip", "affine", "brightness", "resized_crop"]] = []
    precision: Literal["float32", "bfloat16", "tf32"] = Field(
        "float32", description="of the layers in training and its attacks; evaluation is always in float32"
    )
    compile: bool = Field(False, description="torch.compile the network in training; with CUDA graphs on GPUs")
    select: Literal["best", "last"] = Field("best", description="the epoch to evaluate; best: by validation")
    snapshots: Natural = Field(0, description="keep the weights of every so many epochs, for curvature; 0: never")

    @pydantic.model_validator(mode="after")
    def _milestones_within(self) -> Training:
        if self.milestones != sorted(set(self.milestones)) or any(m >= self.epochs for m in self.milestones):
            raise ValueError(f"milestones {self.milestones} must increase and lie below epochs ({self.epochs})")
        return self

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.lr / 10 ** sum(epoch >= milestone for milestone in self.milestones)

    @property
    def snapshot_epochs(self) -> range:
        """The epochs, counted from 1, after which the weights are kept."""
        return range(self.snapshots, self.epochs + 1, self.snapshots) if self.snapshots else range(0)

    @staticmethod
    def snapshot(epoch: int) -> str:
        """Where the weights after ``epoch`` epochs are, in the run's folder."""
        return f"snapshots/epoch{epoch:04}.safetensors"
