"""The study's figures, each as png and pdf. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from sat_core.config import Study
from sat_core.files import atomic
from sat_core.tables import histories, results

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
}
COLOURS = ["#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#E69F00"]
"""Okabe and Ito's palette, which the colour-blind can tell apart."""
MARKERS = "osD^vP*"


def appearance(defenses: list[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each defense, the same in every figure of a table."""
    return {d: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, d in enumerate(defenses)}


def training_curves(study: Study, name: str) -> Figure:
    """Training loss and robust validation accuracy over the epochs; columns are epsilons, thin lines single seeds."""
    table = study.file.tables[name]
    rows = histories(study, table)
    looks = appearance(table.defenses)
    panels = (("loss", "training loss", 1), ("validation_robust", "robust validation\naccuracy (PGD, %)", 100))
    width = 2.6 * len(table.epsilons) + 1.4
    figure, axes = plt.subplots(2, len(table.epsilons), figsize=(width, 4.4), sharex=True, sharey="row", squeeze=False)
    for column, epsilon in enumerate(table.epsilons):
        axes[0, column].set_title(f"$\\epsilon$ = {epsilon}")
        axes[1, column].set_xlabel("epoch")
        for row, (key, label, scale) in enumerate(panels):
            if column == 0:
                axes[row, 0].set_ylabel(label)
            for defense in table.defenses:
                chosen = rows[(rows["defense"] == defense) & (rows["epsilon"] == epsilon.text)] if len(rows) else rows
                for i, (_, run) in enumerate(chosen.groupby(["model", "seed"]) if len(chosen) else ()):
                    axes[row, column].plot(
                        run["epoch"] + 1,
                        scale * run[key],
                        color=looks[defense][0],
                        lw=1.3,
                        alpha=0.8,
                        label=defense if i == 0 else None,
                    )
    outside_legend(figure, axes[0, 0])
    return figure


def tradeoff(study: Study, name: str) -> Figure:
    """Clean against robust accuracy, a point a run, joined to its mean over seeds; trivial runs are hollow."""
    table = study.file.tables[name]
    rows = results(study, table)
    looks = appearance(table.defenses)
    width = 2.6 * len(table.epsilons) + 1.4
    figure, axes = plt.subplots(1, len(table.epsilons), figsize=(width, 3.1), sharex=True, sharey=True, squeeze=False)
    for axis, epsilon in zip(axes[0], table.epsilons, strict=True):
        axis.set_title(f"$\\epsilon$ = {epsilon}")
        axis.set_xlabel("clean accuracy (%)")
        axis.set(xlim=(-3, 103), ylim=(-3, 103))
        for defense in table.defenses:
            colour, marker = looks[defense]
            chosen = rows[(rows["defense"] == defense) & (rows["epsilon"] == epsilon.text)]
            for trivial, points in chosen.groupby("trivial"):
                axis.scatter(
                    *(points["clean"], points["robust"]),
                    marker=marker,
                    s=42,
                    facecolors="none" if trivial else colour,
                    edgecolors=colour,
                    label=f"{defense} (trivial)" if trivial else defense,
                )
    axes[0, 0].set_ylabel("AutoAttack accuracy (%)")
    outside_legend(figure, *axes[0])
    return figure


def outside_legend(figure: Figure, *axes: plt.Axes) -> None:
    """One legend for the whole figure, to its right, where it hides no data."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside right upper")


KINDS: dict[str, Callable[[Study, str], Figure]] = {"curves": training_curves, "tradeoff": tradeoff}
"""Figure kinds by name: ``figures/<table>-<kind>.{png,pdf}``."""


def write_figure(study: Study, name: str, kind: str) -> Path:
    """Draw one kind of figure for one table from the results there are; returns the png's path."""
    with plt.rc_context(STYLE):
        figure = KINDS[kind](study, name)
        base = study.folder / "figures" / f"{name}-{kind}"
        for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            with atomic(base.with_name(f"{base.name}.{suffix}"), "wb") as file:
                figure.savefig(file, format=suffix, metadata=metadata)
        plt.close(figure)
    return base.with_name(f"{base.name}.png")
