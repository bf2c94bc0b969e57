"""How training went, and what the attacked images look like."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from sat_core.report.figures.style import RED, Drawing, appearance, blocks, existing, heading, in_block, legend, panels
from sat_core.report.numbers import address, histories, unfinished
from sat_core.study import RunId, Study
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
LEAST = 0.4
"""Inches that a column of examples needs."""


def training_curves(study: Study, name: str) -> Drawing:
    """How training went, over the epochs: a row a quantity, a column an epsilon, a line a run, dotted if unfinished."""
    table = study.file.tables[name]
    parts = histories(study, table).assign(unfinished=False), unfinished(study, table).assign(unfinished=True)
    rows = pd.concat(parts)
    looks = appearance(study, table)
    groups = blocks(table, rows)
    figure, axes, starts = panels(study, len(DYNAMICS), len(groups), 8.2, least=1.2)
    for column, (model, epsilon) in enumerate(groups):
        axes[0, column].set_title(heading(table, model, epsilon, "\n"))
        axes[-1, column].set_xlabel("epoch")
        for row, (key, (label, scale)) in enumerate(DYNAMICS.items()):
            axes[row, column].set_ylabel(label if column in starts else "")
            axes[row, column].yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            for i, defense in enumerate(table.defenses):
                for (_, begun), run in in_block(rows, model, epsilon, defense).groupby(["seed", "unfinished"]):
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
                        linestyle=":" if begun else "-",
                        label=study.display(defense) + " (unfinished)" * begun,
                    )
    legend(figure, *axes[0])
    return Drawing(figure, rows)


def examples(study: Study, name: str) -> Drawing:
    """Clean images beside what each defense's network makes of them under attack, for the first seed.

    A column a defense; two rows an image: the perturbed image under the predictions, and the perturbation.
    """
    table = study.file.tables[name]
    runs = table.first(table.run_ids)
    files = existing(study, runs, "evaluate", "examples.npz")
    groups, width = blocks(table, files), study.file.figure_width
    count = max((len(file["label"]) for file in files.values()), default=1)
    across = min(len(table.defenses), max(int(width / LEAST) - 1, 1))
    lines = math.ceil(len(table.defenses) / across)
    height = lines * (1.3 + 2 * count * (width / (across + 1) + 0.1))
    figure = plt.figure(figsize=(width, height * len(groups)))
    for part, group in zip(figure.subfigures(len(groups), squeeze=False)[:, 0], groups, strict=True):
        part.suptitle(heading(table, *group), fontsize="large")
        ids = [id for id in runs if (id.model, id.epsilon) == group]
        for line, below in enumerate(part.subfigures(lines, squeeze=False)[:, 0]):
            axes = below.subplots(2 * count, 1 + across, squeeze=False)
            draw_columns(study, axes, ids[line * across : (line + 1) * across], files)
    columns = ["label", "prediction", "prediction_perturbed"]
    shown = [pd.DataFrame({key: file[key] for key in columns}).assign(**address(id)) for id, file in files.items()]
    return Drawing(figure, pd.concat(shown) if shown else pd.DataFrame(columns=columns))


def draw_columns(study: Study, axes: np.ndarray, ids: list[RunId], files: dict[RunId, dict[str, np.ndarray]]) -> None:
    """The clean images' column and one a run; axes (2 n, 1 + runs or more)."""
    upright = {"fontsize": "small", "rotation": 90}
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
        axis.spines[:].set(visible=True, color="0.6", linewidth=0.5)
    axes[0, 0].set_title("clean", **upright)
    for column, id in enumerate(ids, start=1):
        axes[0, column].set_title(study.display(id.defense), **upright)
        if id in files:
            draw_examples(axes[:, [0, column]], files[id], id.epsilon)
        else:
            axes[0, column].text(0.5, 0.5, "no\nresult", ha="center", va="center", fontsize="x-small")


def draw_examples(axes: np.ndarray, file: dict[str, np.ndarray], epsilon: Epsilon) -> None:
    """One run's examples; axes (2 n, 2): the clean images' column, and its own."""
    for i, label in enumerate(file["label"]):
        clean, perturbed = file["clean"][i], file["perturbed"][i]
        before, after = file["prediction"][i], file["prediction_perturbed"][i]
        show(axes[2 * i, 0], clean)
        show(axes[2 * i, 1], perturbed)
        show(axes[2 * i + 1, 1], 0.5 + (perturbed - clean) / (2 * epsilon.value))
        axes[2 * i, 0].set_xlabel(f"is {label}", fontsize="x-small", labelpad=2)
        axes[2 * i, 1].set_xlabel(
            f"{before}→{after}", fontsize="x-small", labelpad=2, color="black" if after == label else RED
        )


def show(axis: plt.Axes, image: np.ndarray) -> None:
    """An image (C, H, W) in [0, 1], grey or in colour."""
    pixels = np.clip(image, 0, 1).transpose(1, 2, 0)
    axis.set_frame_on(True)
    axis.imshow(pixels if len(image) == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
