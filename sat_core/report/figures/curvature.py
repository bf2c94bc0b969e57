"""The Hessian of the loss: its largest eigenvalue, and its spectrum."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sat_core.report.figures.style import (
    RED,
    Drawing,
    appearance,
    blocks,
    draw_points,
    existing,
    heading,
    in_block,
    legend,
    panels,
)
from sat_core.report.numbers import ADDRESS, address
from sat_core.study import Study
from sat_core.study.address import Epsilon
from sat_core.study.file import Table

ACCURACY = "adversarial accuracy\non the same images (%)"
MEASURES = {
    "lambda_max": "$\\lambda_\\mathrm{max}$ of the Hessian",
    "trace": "trace of the Hessian",
    "relative_flatness": "relative flatness",
}
"""Measures of curvature.json -> their labels; those that a result has are shown."""
ERRORS = ["residual", "trace_error", "relative_flatness_error"]


def curvature(study: Study, name: str) -> Drawing:
    """Measures of curvature, and below them the accuracy without which they say nothing: over epochs, against epsilon.

    A line or point a run, ringed in red where the network was trivial. Snapshots fill the columns over epochs, if there
    are.
    """
    table = study.file.tables[name]
    rows = measured(study, table)
    looks = appearance(study, table)
    snapshots, selected = rows[~rows["selected"]], rows[rows["selected"]]
    over_epochs = [block for block in blocks(table) if len(in_block(snapshots, *block))]
    labels = shown(rows) | {"adversarial": ACCURACY}
    columns = len(over_epochs) + len(table.networks)
    figure, axes, starts = panels(study, len(labels), columns, 2.3 * len(labels), least=1.05)
    for row, (key, label) in enumerate(labels.items()):
        for column in starts:
            axes[row, column].set_ylabel(label)
        for axis, block in zip(axes[row], over_epochs, strict=False):
            for (defense, _), run in in_block(snapshots, *block).groupby(["defense", "seed"], sort=False):
                draw_points(
                    axis, run["epoch"], run[key], run["trivial"], *looks[defense], study.display(defense), line=True
                )
        for axis, model in zip(axes[row, len(over_epochs) :], table.networks, strict=True):
            for defense, runs in selected[selected["model"] == model].groupby("defense", sort=False):
                values = runs["epsilon"].map(lambda text: Epsilon.parse(text).value)
                draw_points(axis, values, runs[key], runs["trivial"], *looks[defense], study.display(defense))
                mean = runs.loc[~runs["trivial"], key].groupby(values).mean()
                axis.plot(mean.index, mean, color=looks[defense][0], lw=1.3, alpha=0.6)
        axes[row, 0].set_yscale("linear" if key == "adversarial" else scale(rows, key))
    for column, block in enumerate(over_epochs):
        axes[0, column].set_title("training,\n" + heading(table, *block, "\n"))
        axes[-1, column].set_xlabel("epoch")
    for column, model in enumerate(table.networks, start=len(over_epochs)):
        axes[0, column].set_title("selected\nweights" + (f"\n{model}" if len(table.networks) > 1 else ""))
        axes[-1, column].set_xlabel("$\\epsilon$ (pixel units)")
        axes[-1, column].set_xticks([e.value for e in table.epsilons], [e.text for e in table.epsilons])
        axes[-1, column].margins(x=0.15)
    axes[-1, 0].set_ylim(-3, 103)
    legend(figure, *axes.flat)
    return Drawing(figure, rows)


def curvature_accuracy(study: Study, name: str) -> Drawing:
    """Curvature against adversarial accuracy on the same images: a run's way through its training, and where it ends.

    Small dots are snapshots, which a line joins; the marker is the selected network.
    """
    table = study.file.tables[name]
    return ways(study, table, measured(study, table))


def ways(study: Study, table: Table, rows: pd.DataFrame) -> Drawing:
    """As :func:`curvature_accuracy`, of rows such as :func:`measured` gives."""
    labels, looks, groups = shown(rows), appearance(study, table), blocks(table, rows)
    figure, axes, starts = panels(study, len(labels), len(groups), 2.5 * len(labels) + 0.5, least=1.6)
    for column, group in enumerate(groups):
        axes[0, column].set_title(heading(table, *group, "\n"))
        axes[-1, column].set_xlabel("adversarial accuracy (%)")
        for axis, (key, label) in zip(axes[:, column], labels.items(), strict=True):
            axis.set(ylabel=label if column in starts else "", yscale=scale(rows, key))
            for (defense, _), run in in_block(rows, *group).groupby(["defense", "seed"], sort=False):
                way, end = run[~run["selected"]].sort_values("epoch"), run[run["selected"]]
                colour, marker = looks[defense]
                axis.plot(way["adversarial"], way[key], ".-", color=colour, lw=0.8, ms=3, alpha=0.6)
                draw_points(axis, end["adversarial"], end[key], end["trivial"], colour, marker, study.display(defense))
    legend(figure, *axes.flat)
    return Drawing(figure, rows)


def shown(rows: pd.DataFrame) -> dict[str, str]:
    """The measures that results have, with their labels; lambda_max always."""
    return {key: label for key, label in MEASURES.items() if key == "lambda_max" or rows[key].notna().any()}


def scale(rows: pd.DataFrame, key: str) -> str:
    """Logarithmic, unless something is not positive."""
    return "log" if rows[key].dropna().gt(0).all() else "symlog"


def measured(study: Study, table: Table) -> pd.DataFrame:
    """One row a measured network: address, epoch, whether it is the selected one, and curvature.json's record of it."""
    rows = []
    for id, content in existing(study, table.curvature_ids, "curvature").items():
        rows.append(address(id) | content["selected"] | {"selected": True})
        rows += [address(id) | record | {"selected": False} for record in content["epochs"]]
    columns = [*ADDRESS, "epoch", "selected", *MEASURES, *ERRORS, "clean", "adversarial", "loss", "trivial"]
    frame = pd.DataFrame(rows, columns=columns).astype({"selected": bool, "trivial": bool})  # also where there are none
    return frame.assign(**{name: 100 * frame[name].astype(float) for name in ("clean", "adversarial")})


def spectrum(study: Study, name: str) -> Drawing:
    """The density of the Hessian's eigenvalues for the first seed of each cell, smoothed by a Gaussian kernel."""
    table = study.file.tables[name]
    looks = appearance(study, table)
    lines = []
    first_seed = table.first(table.curvature_ids)
    measurements = existing(study, first_seed, "curvature")
    found = {id: content["spectrum"] for id, content in measurements.items() if content["spectrum"]["nodes"]}
    groups = blocks(table, found)
    figure, axes, starts = panels(study, 1, len(groups), 3, least=2.2)
    nodes = np.concatenate([spectrum["nodes"] for spectrum in found.values()] or [[0, 1]])
    kernel = max(np.ptp(nodes), 1e-12) / 100
    t = np.linspace(nodes.min() - 4 * kernel, nodes.max() + 4 * kernel, 2000)
    for column, (axis, group) in enumerate(zip(axes[0], groups, strict=True)):
        axis.set(title=heading(table, *group, "\n"), xlabel="eigenvalue of the Hessian", xlim=(t[0], t[-1]))
        axis.set_ylabel(f"density (kernel width {kernel:.2g})" if column in starts else "")
        for id, spectrum in found.items():
            if (id.model, id.epsilon) == group:
                bells = np.exp(-0.5 * ((t[:, None] - spectrum["nodes"]) / kernel) ** 2) / (kernel * np.sqrt(2 * np.pi))
                density = bells @ spectrum["weights"]
                axis.plot(t, density, color=looks[id.defense][0], lw=1.3, label=study.display(id.defense))
                if trivial := measurements[id]["selected"]["trivial"]:
                    axis.plot(t, density, color=RED, lw=1.3, ls=":", label="trivial")
                data = pd.DataFrame({"eigenvalue": t, "density": density, "trivial": trivial})
                lines.append(data.assign(**address(id)))
    axes[0, 0].set(yscale="log", ylim=(1e-7, 30 / kernel))
    legend(figure, *axes[0])
    return Drawing(figure, pd.concat(lines) if lines else pd.DataFrame(columns=["eigenvalue", "density"]))
