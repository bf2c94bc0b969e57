"""The Hessian of the loss: its largest eigenvalue, and its spectrum."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sat_core.report.figures.style import appearance, blocks, draw_points, existing, heading, in_block, legend, panels
from sat_core.report.numbers import ADDRESS, address
from sat_core.study import Study
from sat_core.study.address import Epsilon
from sat_core.study.file import Table

ACCURACY = "adversarial accuracy\non the same images (%)"


def curvature(study: Study, name: str) -> Figure:
    """lambda_max, and below it the accuracy without which it says nothing: over the epochs, and against epsilon.

    A line or point a run; hollow where the network was trivial. Snapshots fill the columns over epochs, if there are.
    """
    table = study.file.tables[name]
    rows = measured(study, table)
    looks = appearance(study, table)
    snapshots, selected = rows[~rows["selected"]], rows[rows["selected"]]
    over_epochs = [block for block in blocks(table.curvature_ids) if len(in_block(snapshots, *block))]
    models = list(dict.fromkeys(id.model for id in table.curvature_ids))
    figure, axes = panels(2, len(over_epochs) + len(models), 4.6, sharex="col", sharey="row")
    for row, (key, label) in enumerate(
        (("lambda_max", "$\\lambda_\\mathrm{max}$ of the Hessian"), ("adversarial", ACCURACY))
    ):
        axes[row, 0].set_ylabel(label)
        for axis, block in zip(axes[row], over_epochs, strict=False):
            for (defense, _), run in in_block(snapshots, *block).groupby(["defense", "seed"], sort=False):
                draw_points(
                    axis, run["epoch"], run[key], run["trivial"], *looks[defense], study.display(defense), line=True
                )
        for axis, model in zip(axes[row, len(over_epochs) :], models, strict=True):
            for defense, runs in selected[selected["model"] == model].groupby("defense", sort=False):
                values = runs["epsilon"].map(lambda text: Epsilon.parse(text).value)
                draw_points(axis, values, runs[key], runs["trivial"], *looks[defense], study.display(defense))
                mean = runs[key].groupby(values).mean()
                axis.plot(mean.index, mean, color=looks[defense][0], lw=1.3, alpha=0.6)
    for (top, bottom), block in zip(axes.T, over_epochs, strict=False):
        top.set_title("training, " + heading(table, *block, "\n"))
        bottom.set_xlabel("epoch")
    for (top, bottom), model in zip(axes.T[len(over_epochs) :], models, strict=True):
        top.set_title("selected weights" + (f"\n{model}" if len(models) > 1 else ""))
        bottom.set_xlabel("$\\epsilon$ (pixel units)")
        bottom.set_xticks([e.value for e in table.epsilons], [e.text for e in table.epsilons])
        bottom.margins(x=0.15)
    axes[0, 0].set_yscale("log")
    axes[1, 0].set_ylim(-3, 103)
    legend(figure, *axes.flat)
    return figure


def measured(study: Study, table: Table) -> pd.DataFrame:
    """One row a measured network: address, epoch, whether it is the selected one, and curvature.json's record of it."""
    rows = []
    for id, content in existing(study, table.curvature_ids, "curvature").items():
        rows.append(address(id) | content["selected"] | {"selected": True})
        rows += [address(id) | record | {"selected": False} for record in content["epochs"]]
    columns = [*ADDRESS, "epoch", "selected", "lambda_max", "adversarial", "trivial"]
    frame = pd.DataFrame(rows, columns=columns).astype({"selected": bool, "trivial": bool})  # also where there are none
    return frame.assign(adversarial=100 * frame["adversarial"])


def spectrum(study: Study, name: str) -> Figure:
    """The density of the Hessian's eigenvalues for the first seed of each cell, smoothed by a Gaussian kernel."""
    table = study.file.tables[name]
    looks = appearance(study, table)
    groups = blocks(table.curvature_ids)
    figure, axes = panels(1, len(groups), 3, sharex=True, sharey=True)
    measurements = existing(study, table.first(table.curvature_ids), "curvature")
    found = [(id, content["spectrum"]) for id, content in measurements.items() if content["spectrum"]["nodes"]]
    nodes = np.concatenate([spectrum["nodes"] for _, spectrum in found] or [[0, 1]])
    kernel = max(np.ptp(nodes), 1e-12) / 100
    t = np.linspace(nodes.min() - 4 * kernel, nodes.max() + 4 * kernel, 2000)
    for axis, group in zip(axes[0], groups, strict=True):
        axis.set_title(heading(table, *group, "\n"))
        for id, spectrum in found:
            if (id.model, id.epsilon) == group:
                bells = np.exp(-0.5 * ((t[:, None] - spectrum["nodes"]) / kernel) ** 2) / (kernel * np.sqrt(2 * np.pi))
                axis.plot(
                    t, bells @ spectrum["weights"], color=looks[id.defense][0], lw=1.3, label=study.display(id.defense)
                )
    figure.supxlabel("eigenvalue of the Hessian", fontsize="medium")
    axes[0, 0].set(yscale="log", ylim=(1e-7, 30 / kernel), ylabel=f"density (kernel width {kernel:.2g})")
    legend(figure, *axes[0])
    return figure
