"""One network to train and judge, with nothing left open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sat_core.fields import Frozen
from sat_core.study.address import EpsilonField, RunId
from sat_core.study.settings import (
    Attack,
    Curvature,
    Data,
    Evaluation,
    Landscape,
    Resources,
    Training,
    Validation,
)


class Run(Frozen):
    """One network to train and judge, with nothing left open. ``base`` is the defense that ``defense`` varies.

    ``defense_file``, ``model_file``: the plugins that they are in, if they are not the package's.
    """

    study: str
    dataset: str
    model: str
    defense: str
    base: str
    epsilon: EpsilonField
    seed: int
    data: Data
    training: Training
    attack: Attack
    validation: Validation
    evaluation: Evaluation
    curvature: Curvature
    landscape: Landscape
    resources: Resources
    options: dict[str, Any]
    defense_file: str | None = None
    model_file: str | None = None

    @property
    def id(self) -> RunId:
        return RunId(self.dataset, self.model, self.defense, self.epsilon, self.seed)

    @property
    def folder(self) -> Path:
        """Where its files go, relative to the working directory."""
        return Path("results", self.study, "runs", self.id.path)
