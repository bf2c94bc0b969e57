"""How training went, what came of it, and what the attacked images look like."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sat_core.report.figures.style import (
    RED,
    WIDTH,
    appearance,
    blocks,
    draw_points,
    existing,
    heading,
    in_block,
    legend,
    panels,
)
from sat_core.report.numbers import histories, results
from sat_core.study import Study
from sat_core.study.address import Epsilon

DYNAMICS = {
    "loss": ("training loss", 1),
    "validation_clean": ("clean validation\naccuracy (%)", 100),
    "validation_robust": ("robust validation\naccuracy (PGD, %)", 100),
    "lambda": ("$\\lambda$ (dynamic: $c$)", 1),
    "stopped": ("samples\nstopped (%)", 100),
    "steps": ("attack steps\na sample", 1),
}
"""Column of history.csv -> its label and scale."""


def training_curves(study: Study, name: str) -> Figure:
    """How training went, over the epochs: a row a quantity, a column an epsilon, a line a run."""
    table = study.file.tables[name]
    rows = histories(study, table)
    looks = appearance(study, table)
    groups = blocks([id for id in table.run_ids if id.defense not in study.externals] or table.run_ids)
    figure, axes = panels(len(DYNAMICS), len(groups), 8.2, sharex=True, sharey="row")
    for column, (model, epsilon) in enumerate(groups):
        axes[0, column].set_title(heading(table, model, epsilon, "\n"))
        axes[-1, column].set_xlabel("epoch")
        for row, (key, (label, scale)) in enumerate(DYNAMICS.items()):
            axes[row, 0].set_ylabel(label)
            axes[row, column].yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            for i, defense in enumerate(table.defenses):
                for _, run in in_block(rows, model, epsilon, defense).groupby("seed"):
                    colour, marker = looks[defense]
                    spacing = max(len(run) // 4, 1)
                    axes[row, column].plot(
                        *(run["epoch"] + 1, scale * run[key]),
                        color=colour,
                        marker=marker,
                        markersize=3.5,
                        markevery=(i * spacing // len(table.defenses), spacing),
                        lw=1.2,
                        alpha=0.85,
                        label=study.display(defense),
                    )
    legend(figure, axes[0, 0])
    return figure


def tradeoff(study: Study, name: str) -> Figure:
    """Clean against robust accuracy, a marker a run; trivial runs are hollow."""
    table = study.file.tables[name]
    rows = results(study, table)
    looks = appearance(study, table)
    groups = blocks(table.run_ids)
    figure, axes = panels(1, len(groups), 3.4, sharex=True, sharey=True)
    for axis, (model, epsilon) in zip(axes[0], groups, strict=True):
        axis.set_title(heading(table, model, epsilon, "\n"))
        axis.set_xlabel("clean accuracy (%)")
        axis.set(xlim=(-3, 103), ylim=(-3, 103))
        for defense in table.defenses:
            chosen = in_block(rows, model, epsilon, defense)
            draw_points(
                axis, chosen["clean"], chosen["robust"], chosen["trivial"], *looks[defense], study.display(defense)
            )
    axes[0, 0].set_ylabel("AutoAttack accuracy (%)")
    legend(figure, *axes[0])
    return figure


def examples(study: Study, name: str) -> Figure:
    """Clean images beside what each defense's network makes of them under attack, for the first seed.

    A column a defense; two rows an image: the perturbed image under the predictions, and the perturbation.
    """
    table = study.file.tables[name]
    groups = blocks(table.run_ids)
    runs = table.first(table.run_ids)
    files = existing(study, runs, "evaluate", "examples.npz")
    count = max((len(file["label"]) for file in files.values()), default=1)
    figure = plt.figure(figsize=(WIDTH, (0.4 + 1.8 * count) * len(groups)))
    for part, group in zip(figure.subfigures(len(groups), squeeze=False)[:, 0], groups, strict=True):
        part.suptitle(heading(table, *group), fontsize=10)
        ids = [id for id in runs if (id.model, id.epsilon) == group]
        axes = part.subplots(2 * count, 1 + len(ids), squeeze=False)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[], frame_on=False)
            axis.spines[:].set(visible=True, color="0.6", linewidth=0.5)
        axes[0, 0].set_title("clean", fontsize=8)
        for column, id in enumerate(ids, start=1):
            axes[0, column].set_title(study.display(id.defense), fontsize=8)
            if id in files:
                draw_examples(axes[:, [0, column]], files[id], id.epsilon)
            else:
                axes[0, column].text(0.5, 0.5, "no\nresult", ha="center", va="center", fontsize=8)
    return figure


def draw_examples(axes: np.ndarray, file: dict[str, np.ndarray], epsilon: Epsilon) -> None:
    """One run's examples; axes (2 n, 2): the clean images' column, and its own."""
    for i, label in enumerate(file["label"]):
        clean, perturbed = file["clean"][i], file["perturbed"][i]
        before, after = file["prediction"][i], file["prediction_perturbed"][i]
        show(axes[2 * i, 0], clean)
        show(axes[2 * i, 1], perturbed)
        show(axes[2 * i + 1, 1], 0.5 + (perturbed - clean) / (2 * epsilon.value))
        axes[2 * i, 0].set_xlabel(f"is {label}", fontsize=8)
        axes[2 * i, 1].set_xlabel(f"{before} → {after}", fontsize=8, color="black" if after == label else RED)


def show(axis: plt.Axes, image: np.ndarray) -> None:
    """An image (C, H, W) in [0, 1], grey or in colour."""
    pixels = np.clip(image, 0, 1).transpose(1, 2, 0)
    axis.set_frame_on(True)
    axis.imshow(pixels if len(image) == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
