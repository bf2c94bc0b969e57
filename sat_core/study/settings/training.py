"""`training`: how the weights are found."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from sat_core.fields import Count, Frozen, Natural, NonNegative, Number, Positive, When, at


class AWP(Frozen):
    """Adversarial weight perturbation (Wu et al. 2020): the loss is taken where it is highest near the weights."""

    gamma: Positive = Field(0.005, description="how far each layer moves, in norms of its weights")
    warm_up: When = Field(0, description="the epoch, or share of the training, from which on")


class Training(Frozen):
    """Optimiser, learning rate and what becomes of the weights. Epochs count from 0, or are shares such as 0.6."""

    epochs: Count
    batch_size: Count = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(0.9, description="of SGD; of Adam, its first beta")
    weight_decay: NonNegative = 5e-4
    schedule: Literal["steps", "cosine", "linear", "one-cycle"] = Field(
        "steps", description="of lr: divided by 10 at each milestone; to 0 along a cosine or a line; up and down once"
    )
    milestones: list[When] = Field([], description="epochs at which `steps` divides lr by 10")
    warm_up: When = Field(0, description="lr rises in a line until then; of `one-cycle` the rise, 0.3 if not given")
    schedule_per: Literal["epoch", "step"] = Field("epoch", description="how often lr changes; `one-cycle`: each step")
    clip: Positive | None = Field(None, description="the most that the gradient's norm may be")
    average: Literal["ema", "swa"] | None = Field(
        None, description="judge averaged weights: exponentially over steps, or evenly over epochs"
    )
    average_decay: Annotated[Number, Field(gt=0, lt=1)] = Field(0.995, description="of `ema`, a step")
    average_from: When = Field(0, description="the epoch from which on weights are averaged")
    awp: AWP | None = Field(None, description="adversarial weight perturbation, with any defense: {gamma, warm_up}")
    augmentation: list[Literal["crop", "flip", "affine", "brightness", "resized_crop"]] = []
    precision: Literal["float32", "bfloat16", "tf32", "auto"] = Field(
        "float32",
        description="of the layers in training and its attacks; evaluation has its own. `auto`: bfloat16 on a "
        "device that has it, else float32; `run.json` says which",
    )
    compile: bool = Field(False, description="torch.compile the network in training; with CUDA graphs on GPUs")
    select: Literal["best", "last"] = Field("best", description="the epoch to evaluate; best: by validation")
    snapshots: Natural = Field(0, description="keep the weights of every so many epochs, for curvature; 0: never")
    tensorboard: bool = Field(False, description="write TensorBoard's event files, too; changes no number")

    @pydantic.model_validator(mode="after")
    def _schedules_within(self) -> Training:
        too_late = any(isinstance(when, int) and when >= self.epochs for when in self.milestones)
        if (
            len(set(self.milestones)) < len(self.milestones)
            or self.milestone_epochs != sorted(self.milestone_epochs)
            or too_late
        ):
            raise ValueError(f"milestones {self.milestones} must increase and lie below epochs ({self.epochs})")
        if self.milestones and self.schedule != "steps":
            raise ValueError(f"milestones {self.milestones} belong to schedule: steps, not {self.schedule}")
        if at(self.warm_up, self.epochs) >= self.epochs:
            raise ValueError(f"warm_up {self.warm_up} must end before the last epoch ({self.epochs - 1})")
        if self.average and at(self.average_from, self.epochs) >= self.epochs:
            raise ValueError(f"average_from {self.average_from} is after the last epoch ({self.epochs - 1})")
        if self.awp and at(self.awp.warm_up, self.epochs) >= self.epochs:
            raise ValueError(f"awp.warm_up {self.awp.warm_up} is after the last epoch ({self.epochs - 1})")
        return self

    @property
    def milestone_epochs(self) -> list[int]:
        """The milestones as epochs; shares of a training so short that they fall together do."""
        return [min(at(when, self.epochs), self.epochs - 1) for when in self.milestones]

    @property
    def snapshot_epochs(self) -> range:
        """The epochs, counted from 1, after which the weights are kept."""
        return range(self.snapshots, self.epochs + 1, self.snapshots) if self.snapshots else range(0)

    @staticmethod
    def snapshot(epoch: int) -> str:
        """Where the weights after ``epoch`` epochs are, in the run's folder."""
        return f"snapshots/epoch{epoch:04}.safetensors"
