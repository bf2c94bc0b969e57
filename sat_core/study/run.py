"""One network to train and judge, with nothing left open."""

from __future__ import annotations

import hashlib
import json
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
    """One network to train and judge, with nothing left open. ``base`` is the defense that ``defense`` varies."""

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

    @property
    def id(self) -> RunId:
        return RunId(self.dataset, self.model, self.defense, self.epsilon, self.seed)

    @property
    def folder(self) -> Path:
        """Where its files go, relative to the working directory."""
        return Path("results", self.study, "runs", self.id.path)

    @property
    def training_config(self) -> dict[str, Any]:
        """What the trained weights depend on, as plain JSON types. The place of the data is not part of it."""
        config = self.model_dump(mode="json", exclude={"study", "evaluation", "resources", "curvature", "landscape"})
        del config["data"]["root"]
        return config | {"threads": self.resources.threads}

    @property
    def evaluation_config(self) -> dict[str, Any]:
        """What AutoAttack's verdict on given weights depends on."""
        return self.evaluation.model_dump(mode="json", exclude={"shards"})

    def digest(self, *parts: Any) -> str:
        """A short fingerprint of :attr:`training_config` and ``parts`` (JSON types)."""
        text = json.dumps([self.training_config, *parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
