"""What may be set for a run, a file a section; :class:`Settings` has all, optional and completed elsewhere."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sat_core.fields import Frozen
from sat_core.study.settings.attack import Attack
from sat_core.study.settings.curvature import Curvature
from sat_core.study.settings.data import Data
from sat_core.study.settings.evaluation import Evaluation
from sat_core.study.settings.landscape import Landscape
from sat_core.study.settings.resources import Resources
from sat_core.study.settings.training import Training
from sat_core.study.settings.validation import Validation

__all__ = ["Attack", "Curvature", "Data", "Evaluation", "Landscape", "Resources", "Settings", "Training", "Validation"]


class Settings(Frozen):
    """Everything that may be set for a run; each part is optional here and completed from the dataset's file."""

    data: dict[str, Any] = {}
    training: dict[str, Any] = {}
    attack: dict[str, Any] = {}
    validation: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    curvature: dict[str, Any] = {}
    landscape: dict[str, Any] = {}
    resources: dict[str, Any] = {}
    options: dict[str, Any] = Field({}, description="of the defense: the fields of its class")
