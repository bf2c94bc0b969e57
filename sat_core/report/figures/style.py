"""What all figures share: sizes, colours, markers, headings, the legend, and the results that they are drawn from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sat_core.runs import folder
from sat_core.runs.files import read_arrays
from sat_core.study import RunId, Study, usual_names
from sat_core.study.address import Epsilon
from sat_core.study.file import Table

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # TrueType: many venues refuse the Type 3 that is usual
}
NARROW = 4.0
"""Inches: figures for one column of two have the smaller letters that are usual there."""
COLOURS = ["#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#E69F00"]
"""Okabe and Ito's palette, which the colour-blind can tell apart."""
RED = "#C00000"
LAST = ("trivial", "published")
MARKERS = "osD^vP*X<>phd8H"
PAIRS = [(colour, MARKERS[(i + 7 * turn) % len(MARKERS)]) for turn in range(8) for i, colour in enumerate(COLOURS)]
"""All different; seven in a row differ in both colour and marker."""


class Drawing(NamedTuple):
    """A figure, and the numbers that it shows, one row each."""

    figure: Figure
    data: pd.DataFrame


def rc(study: Study) -> dict[str, Any]:
    """Matplotlib's settings, with letters that read at the width at which the figure will be printed."""
    narrow = study.file.figure_width < NARROW
    return STYLE | ({"font.size": 8, "legend.handletextpad": 0.4, "legend.columnspacing": 1.0} if narrow else {})


def appearance(study: Study, table: Table) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each defense of a table: a defense has the same in every study.

    A variant has the colour of what it varies, and a marker of its own. Defenses from elsewhere take what is left.
    """
    looks = dict(zip(usual_names(), PAIRS, strict=False))
    free = [pair for pair in PAIRS if pair not in looks.values()]
    for name in table.defenses:
        if name not in looks:
            colour = looks.get(study.base_defense(name), (None,))[0]
            looks[name] = next((pair for pair in free if pair[0] == colour), free[0])
            free.remove(looks[name])
    return {name: looks[name] for name in table.defenses}


def panels(
    study: Study, rows: int, columns: int, height: float, least: float = 1.4, sharex: bool = True, sharey: bool = True
) -> tuple[Figure, np.ndarray, range]:
    """A figure as wide as the study wants it, its axes (rows, columns), and the columns that begin a line.

    Columns that would be narrower than ``least`` inches go into a further line of panels, each ``height`` inches high.
    ``sharex``: all panels of a column have one x axis; ``sharey``: all of a row one y axis.
    """
    across = min(columns, max(int(study.file.figure_width / least), 1))
    lines = math.ceil(columns / across)
    size = study.file.figure_width, height * lines
    figure, grid = plt.subplots(rows * lines, across, figsize=size, squeeze=False)
    axes = np.empty((rows, columns), dtype=object)
    for row, column in np.ndindex(rows, columns):
        axis = axes[row, column] = grid[column // across * rows + row, column % across]
        if sharex and row:
            axis.sharex(axes[0, column])
            axes[row - 1, column].tick_params(labelbottom=False)
        if sharey and column:
            axis.sharey(axes[row, 0])
            axis.tick_params(labelleft=column % across == 0)
    for axis in set(grid.flat) - set(axes.flat):
        axis.remove()
    return figure, axes, range(0, columns, across)


def blocks(table: Table, of: pd.DataFrame | Iterable[RunId] | None = None) -> list[tuple[str, Epsilon]]:
    """What is never drawn over one another: runs of another model or another epsilon.

    ``of``: rows or runs; blocks without any have no panels, unless there are none at all.
    """
    every = list(dict.fromkeys((id.model, id.epsilon) for id in table.run_ids))
    if of is None:
        return every
    if isinstance(of, pd.DataFrame):
        there = set(zip(of["model"], of["epsilon"], strict=True))
    else:
        there = {(id.model, id.epsilon.text) for id in of}
    return [(model, epsilon) for model, epsilon in every if (model, epsilon.text) in there] or every


def in_block(rows: pd.DataFrame, model: str, epsilon: Epsilon, defense: str | None = None) -> pd.DataFrame:
    """The rows of one model and epsilon, and of one defense if it is given."""
    rows = rows[(rows["model"] == model) & (rows["epsilon"] == epsilon.text)]
    return rows if defense is None else rows[rows["defense"] == defense]


def heading(table: Table, model: str, epsilon: Epsilon, between: str = ", ") -> str:
    """Of a block of panels: epsilon, and the model where there are several."""
    return f"$\\epsilon$ = {epsilon}" + (f"{between}{model}" if len(table.networks) > 1 else "")


def draw_points(axis, x, y, trivial, colour: str, marker: str, label: str, line: bool = False) -> None:
    """Filled markers, ringed in red where trivial; joined if ``line``."""
    if line:
        axis.plot(x, y, color=colour, lw=1.3, alpha=0.8)
    axis.scatter(x, y, marker=marker, s=24, color=colour, alpha=0.85, zorder=3, label=label)
    if any(trivial):
        ring = {"marker": "o", "s": 70, "facecolors": "none", "edgecolors": RED, "linewidths": 1.2}
        axis.scatter(x[trivial], y[trivial], **ring, zorder=4, label="trivial")


def existing(study: Study, ids: list[RunId], stage: str, arrays: str = "") -> dict[RunId, dict]:
    """What a stage has recorded of each run that it was done for, on the weights that the run has now.

    ``arrays``: the npz file whose content is meant instead of the record itself.
    """
    found = {}
    for run in map(study.run, ids):
        if (record := folder.measured(run, stage)) is not None:
            found[run.id] = read_arrays(run.folder / arrays) if arrays else record
    return found


def legend(figure: Figure, *axes: plt.Axes) -> None:
    """One legend for the whole figure, above it, where it hides no data; what is no defense comes last."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        labels = sorted(handles, key=lambda label: label in LAST)
        columns = max(int(figure.get_figwidth() / 1.5), 1)
        figure.legend([handles[label] for label in labels], labels, loc="outside upper center", ncols=columns)
