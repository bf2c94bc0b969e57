"""The study's figures, each as png and pdf."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from sat_core.report.figures.curvature import curvature, spectrum
from sat_core.report.figures.landscape import landscape
from sat_core.report.figures.style import STYLE
from sat_core.report.figures.training import examples, tradeoff, training_curves
from sat_core.runs.files import atomic
from sat_core.study import Study

logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every glyph

KINDS: dict[str, Callable[[Study, str], Figure]] = {
    "curves": training_curves,
    "tradeoff": tradeoff,
    "examples": examples,
    "curvature": curvature,
    "spectrum": spectrum,
    "landscape": partial(landscape, plane="random"),
    "landscape-reattacked": partial(landscape, plane="reattacked"),
    "landscape-hessian": partial(landscape, plane="hessian"),
    "landscape-input": partial(landscape, plane="input"),
}
"""Figure kinds by name: ``figures/<table>-<kind>.{png,pdf}``."""


def write_figure(study: Study, name: str, kind: str) -> Path:
    """Draw one kind of figure for one table from the results there are; returns the png's path."""
    with plt.rc_context(STYLE):
        try:
            figure = KINDS[kind](study, name)
            base = study.folder / "figures" / f"{name}-{kind}"
            for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
                with atomic(base.with_name(f"{base.name}.{suffix}"), "wb") as file:
                    figure.savefig(file, format=suffix, metadata=metadata)
        finally:
            plt.close("all")  # a kind whose data are damaged has left one behind
    return base.with_name(f"{base.name}.png")
