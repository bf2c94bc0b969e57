"""The study's figures, each as png and pdf, with its numbers as csv."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sat_core.report.figures.accuracy import tradeoff
from sat_core.report.figures.curvature import curvature, curvature_accuracy, spectrum
from sat_core.report.figures.landscape import landscape, pair
from sat_core.report.figures.style import Drawing, rc
from sat_core.report.figures.training import examples, training_curves
from sat_core.runs.files import atomic
from sat_core.study import Study

KINDS: dict[str, Callable[[Study, str], Drawing]] = {
    "curves": training_curves,
    "tradeoff": tradeoff,
    "examples": examples,
    "curvature": curvature,
    "curvature-accuracy": curvature_accuracy,
    "spectrum": spectrum,
    "landscape": partial(landscape, plane="random"),
    "landscape-reattacked": partial(landscape, plane="reattacked"),
    "landscape-hessian": partial(landscape, plane="hessian"),
    "landscape-input": partial(landscape, plane="input"),
    "landscape-pair": pair,
}
"""Figure kinds by name: ``figures/<table>-<kind>.{png,pdf,csv}``."""


def write_figure(study: Study, name: str, kind: str) -> Path:
    """Draw one kind of figure for one table from the results there are; returns the png's path."""
    with plt.rc_context(rc(study)):
        try:
            figure, data = KINDS[kind](study, name)
            base = study.folder / "figures" / f"{name}-{kind}"
            for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
                with atomic(base.with_name(f"{base.name}.{suffix}"), "wb") as file:
                    figure.savefig(file, format=suffix, metadata=metadata)
            with atomic(base.with_name(f"{base.name}.csv")) as file:
                file.write(data.to_csv(index=False, float_format="%.6g"))
        finally:
            plt.close("all")  # a kind whose data are damaged has left one behind
    return base.with_name(f"{base.name}.png")
