"""One network to train and judge, with nothing left open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sat_core.fields import Frozen
from sat_core.study.address import EpsilonField, RunId
from sat_core.study.external import External
from sat_core.study.settings import Attack, Curvature, Data, Evaluation, Landscape, Resources, Training, Validation


class Run(Frozen):
    """One network to train and judge, with nothing left open. ``base`` is the defense that ``defense`` varies.

    ``defense_file``, ``model_file``: the plugins that they are in, if they are not the package's. ``external``: where
    the weights are from, if they were not trained here. ``place``: the folder of its files, if that is none of a study.
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
    external: External | None = None
    place: str | None = None

    @property
    def id(self) -> RunId:
        return RunId(self.dataset, self.model, self.defense, self.epsilon, self.seed)

    @property
    def network(self) -> dict[str, Any]:
        """What makes its network, as keywords of ``models.build``."""
        own = {"name": self.model, "file": self.model_file} | self.data.network
        if self.external is None:
            return own
        plain = {"mean": [0.0] * self.data.image[0], "std": [1.0] * self.data.image[0]}
        given = {"mean": self.external.mean, "std": self.external.std} if self.external.mean else plain
        return own | given | {"name": self.external.function}

    @property
    def results(self) -> Path:
        """Where the files go that it shares with the other runs of its study."""
        return Path(self.place or f"results/{self.study}")

    @property
    def folder(self) -> Path:
        """Where its files go, relative to the working directory."""
        return self.results if self.place else self.results / "runs" / self.id.path
