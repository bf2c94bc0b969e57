"""The study's figures, each as png and pdf, with its numbers as csv."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from sat_core.report.figures.accuracy import tradeoff
from sat_core.report.figures.curvature import curvature, curvature_accuracy, spectrum
from sat_core.report.figures.landscape import landscape, pair
from sat_core.report.figures.style import Drawing, rc
from sat_core.report.figures.training import examples, training_curves
from sat_core.report.kinds import FIGURES
from sat_core.report.numbers import ADDRESS, address, standing
from sat_core.report.render import STALE
from sat_core.runs import folder
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


def marked(study: Study, name: str, kind: str, figure: Figure, data: pd.DataFrame) -> pd.DataFrame:
    """Say below a figure how many of its runs are of other settings or code, and in a column ``stale`` why."""
    stage = FIGURES[kind].stage
    runs = [study.run(id) for id in getattr(study.file.tables[name], folder.STAGES[stage].ids)]
    found = {tuple(address(run).values()): standing(run, stage)["stale"] for run in runs}
    if not any(found.values()):
        return data
    count = sum(map(bool, found.values()))
    figure.supxlabel(f"{STALE} {count} of {len(found)} runs: of other settings or code than the present", size=7)
    if not set(ADDRESS) <= set(data):
        return data
    return data.assign(stale=[found.get(place, "") for place in data[ADDRESS].itertuples(index=False, name=None)])


def write_figure(study: Study, name: str, kind: str) -> Path:
    """Draw one kind of figure for one table from the results there are; returns the png's path."""
    with plt.rc_context(rc(study)):
        try:
            figure, data = KINDS[kind](study, name)
            data = marked(study, name, kind, figure, data)
            base = study.folder / "figures" / f"{name}-{kind}"
            for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
                with atomic(base.with_name(f"{base.name}.{suffix}"), "wb") as file:
                    figure.savefig(file, format=suffix, metadata=metadata)
            with atomic(base.with_name(f"{base.name}.csv")) as file:
                file.write(data.to_csv(index=False, float_format="%.6g"))
        finally:
            plt.close("all")  # a kind whose data are damaged has left one behind
    return base.with_name(f"{base.name}.png")
