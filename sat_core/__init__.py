"""Self-paced adversarial training (SAT): train, attack, judge, and rebuild the paper's tables.

Reading order: :mod:`sat_core.attacks` (PGD with a stopping rule), :mod:`sat_core.difficulty` (psi and the
curriculum), :mod:`sat_core.defenses` (one file a method), :mod:`sat_core.hessian`, then ``sat_core.runs``.
Images are float32 NCHW in [0, 1] everywhere; epsilon is in the same (pixel) units; logits are (N, classes).

The names in ``__all__`` are for everyone's own networks and loops; importing the package loads none of them, nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sat_core.attacks import PGD, Perturbation, cross_entropy, frozen, uniform_start, while_correct
    from sat_core.awp import adversarial_weights
    from sat_core.difficulty import (
        Curriculum,
        classifier_curvature,
        gauss_newton_curvature,
        probability_gap,
        top_softmax_eigenvalue,
    )
    from sat_core.hessian import (
        ImagePlane,
        Objective,
        grid,
        lambda_max,
        random_directions,
        relative_flatness,
        spectrum,
        trace,
        weight_plane,
    )
    from sat_core.judge import Verdict, autoattack

_HOMES = ("attacks", "difficulty", "awp", "hessian", "judge")
"""Where they are; last what comes with AutoAttack."""

__all__ = [
    "PGD",
    "Curriculum",
    "ImagePlane",
    "Objective",
    "Perturbation",
    "Verdict",
    "adversarial_weights",
    "autoattack",
    "classifier_curvature",
    "cross_entropy",
    "frozen",
    "gauss_newton_curvature",
    "grid",
    "lambda_max",
    "probability_gap",
    "random_directions",
    "relative_flatness",
    "spectrum",
    "top_softmax_eigenvalue",
    "trace",
    "uniform_start",
    "weight_plane",
    "while_correct",
]


def __getattr__(name: str) -> Any:
    for home in _HOMES if name in __all__ else ():
        if hasattr(module := importlib.import_module(f"sat_core.{home}"), name):
            return getattr(module, name)
    raise AttributeError(f"module 'sat_core' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
