"""What came of the training: clean against robust accuracy."""

from __future__ import annotations

from fractions import Fraction

import pandas as pd
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from sat_core.report.figures.style import Drawing, appearance, blocks, draw_points, heading, in_block, legend, panels
from sat_core.report.numbers import ADDRESS, published, results
from sat_core.study import Study
from sat_core.study.file import Table

OURS = "run"
"""What a row is of that has not been published by others."""
PLANE = [*ADDRESS, "clean", "robust", "trivial", "origin"]
"""The columns of what the plane shows."""


def tradeoff(study: Study, name: str) -> Drawing:
    """Clean against robust accuracy, a marker a run, with published numbers hollow beside them.

    Above, where runs differ too much for one picture, those that are at least half as robust as the best, larger.
    """
    table = study.file.tables[name]
    return plane(study, table, pd.concat([results(study, table).assign(origin=OURS), known(table)])[PLANE])


def plane(study: Study, table: Table, rows: pd.DataFrame) -> Drawing:
    """As :func:`tradeoff`, of these rows; ``origin`` is OURS, or who has published a point."""
    groups, looks = blocks(table, rows), appearance(study, table)
    floor = rows.groupby(["model", "epsilon"])["robust"].transform("max") / 2
    near = rows[rows["robust"] >= floor]
    pictures = [rows] if len(near) == len(rows) else [near, rows]
    figure, axes, starts = panels(study, len(pictures), len(groups), 2.3 * len(pictures) + 0.5, 1.6, False, False)
    for column, group in enumerate(groups):
        axes[0, column].set_title(heading(table, *group, "\n"))
        for axis, picture in zip(axes[:, column], pictures, strict=True):
            axis.margins(0.12)
            axis.xaxis.set_major_locator(MaxNLocator(4))
            for defense in (name for name in table.defenses if name in set(rows["defense"])):
                draw_runs(axis, in_block(picture, *group, defense), *looks[defense], study.display(defense))
            axis.set(xlabel="clean accuracy (%)", ylabel="AutoAttack accuracy (%)" if column in starts else "")
        if len(pictures) > 1 and len(in_block(near, *group)):
            (left, right), (low, high) = axes[0, column].get_xlim(), axes[0, column].get_ylim()
            frame = Rectangle((left, low), right - left, high - low, fill=False, color="0.5", ls=":", zorder=1)
            axes[1, column].add_patch(frame)
    legend(figure, *axes.flat)
    return Drawing(figure, rows)


def draw_runs(axis, rows: pd.DataFrame, colour: str, marker: str, label: str) -> None:
    """One defense's runs, and hollow what has been published of it."""
    ours, theirs = rows[rows["origin"] == OURS], rows[rows["origin"] != OURS]
    draw_points(axis, ours["clean"], ours["robust"], ours["trivial"], colour, marker, label)
    axis.scatter(theirs["clean"], theirs["robust"], marker=marker, s=44, facecolors="none", edgecolors=colour, zorder=4)
    if len(theirs):
        axis.scatter([], [], marker="o", s=44, facecolors="none", edgecolors="0.3", label="published")


def known(table: Table) -> pd.DataFrame:
    """What has been published of the table's cells, a row each; ``origin`` says by whom."""
    rows = []
    for model in table.networks:
        for defense in table.defenses:
            for epsilon in table.epsilons:
                where = table.dataset, model, defense, Fraction(epsilon.text)
                clean, robust = (published().get((*where, name)) for name in ("clean", "robust"))
                if clean and robust:
                    values = {"clean": clean["published"], "robust": robust["published"]}
                    place = {"model": model, "defense": defense, "epsilon": epsilon.text, "origin": clean["label"]}
                    rows.append(place | values | {"trivial": clean["published_trivial"]})
    return pd.DataFrame(rows, columns=PLANE)
