"""The loss over a plane, defenses side by side."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LightSource
from matplotlib.figure import SubFigure
from matplotlib.ticker import MaxNLocator

from sat_core.report.figures.style import RED, Drawing, blocks, existing, heading
from sat_core.report.numbers import address
from sat_core.study import RunId, Study

PLANES = {
    "random": ("1: random\n(filter norms)", "2: random\n(filter norms)"),
    "reattacked": ("1: random\n(filter norms)", "2: random\n(filter norms)"),
    "hessian": ("1: top eigenvector\n(distance in weights)", "2: next eigenvector\n(distance in weights)"),
    "input": ("1: sign of\ngradient ($\\epsilon$)", "2: random\nsigns ($\\epsilon$)"),
}
"""What the two axes of each plane of ``landscape.npz`` are."""
SLIDE = 12.0
"""Inches: the width of a slide."""


def landscape(study: Study, name: str, plane: str) -> Drawing:
    """The loss over one plane, defenses side by side: as a surface, and as contours below it.

    All panels of an epsilon share loss scale, colours and contour levels, which end at twice their 95 % quantile:
    corners may be thousands of times higher. Each panel says what the network is worth; a trivial one is red.
    """
    table = study.file.tables[name]
    every = planes(study, table.landscape_ids, plane)
    groups, width = blocks(table, every), study.file.figure_width
    across = min(max(len(table.landscapes), 2), max(int(width / 1.6), 1))
    lines = math.ceil(len(table.landscapes) / across) or 1
    figure = plt.figure(figsize=(width, (1.3 + 1.2 * width / across) * lines * len(groups)))
    data = []
    for part, (model, epsilon) in zip(figure.subfigures(len(groups), squeeze=False)[:, 0], groups, strict=True):
        ids = [id for id in table.landscape_ids if (id.model, id.epsilon) == (model, epsilon)]
        part.suptitle(heading(table, model, epsilon), fontsize="large")
        files = {id: every[id] for id in ids if id in every}
        for row, line in enumerate(part.subfigures(lines, squeeze=False)[:, 0]):
            draw_planes(line, study, ids[row * across : (row + 1) * across], files, plane)
        data += [grid(id, file, plane) for id, file in files.items()]
    return Drawing(figure, pd.concat(data) if data else pd.DataFrame())


def planes(study: Study, ids: list[RunId], plane: str) -> dict[RunId, dict[str, np.ndarray]]:
    """Those of the runs' files that have the plane."""
    files = existing(study, ids, "landscape", "landscape.npz")
    return {id: file for id, file in files.items() if f"{plane}_loss" in file}


def grid(id: RunId, file: dict[str, np.ndarray], plane: str) -> pd.DataFrame:
    """A run's plane, one row a point."""
    u, v = np.meshgrid(file[f"{plane}_axis"], file[f"{plane}_axis"], indexing="ij")
    points = {"u": u.ravel(), "v": v.ravel(), "loss": file[f"{plane}_loss"].ravel()}
    return pd.DataFrame(points).assign(**address(id))


def levels_of(files: dict[RunId, dict[str, np.ndarray]], plane: str) -> np.ndarray:
    """Contour levels that serve all of the planes; the last is the highest loss that is drawn."""
    losses = np.concatenate([file[f"{plane}_loss"].ravel() for file in files.values()] or [np.array([0.0, 1.0])])
    return np.array(MaxNLocator(12).tick_values(losses.min(), min(losses.max(), 2 * np.quantile(losses, 0.95))))


def draw_planes(part: SubFigure, study: Study, ids: list[RunId], data: dict, plane: str) -> None:
    """Surfaces above contours, a column a run, in one scale; a run without data keeps its place, empty."""
    levels = levels_of(data, plane)
    low, high = levels[0], levels[-1]
    first, second = PLANES[plane]
    flat, shades = [], None
    for column, id in enumerate(ids):
        surface = part.add_subplot(2, len(ids), column + 1, projection="3d")
        contour = part.add_subplot(2, len(ids), len(ids) + column + 1)
        flat.append(contour)
        surface.set_title(f"{study.display(id.defense)}: loss", fontsize="medium", pad=-2)
        surface.tick_params(labelsize="x-small", pad=-3)
        surface.zaxis.set_major_locator(MaxNLocator(4))
        surface.xaxis.labelpad = surface.yaxis.labelpad = -8
        contour.grid(False)
        contour.set(xlabel=first, ylabel=second if column == 0 else "", aspect="equal")
        if id not in data:
            surface.set_axis_off()
            contour.set_axis_off()
            contour.text(0.5, 0.5, "no result", ha="center", transform=contour.transAxes)
        else:
            file = data[id]
            u, v = np.meshgrid(file[f"{plane}_axis"], file[f"{plane}_axis"], indexing="ij")
            loss = np.minimum(file[f"{plane}_loss"], high)
            surface.plot_surface(u, v, loss, cmap="viridis", vmin=low, vmax=high, rcount=50, ccount=50, lw=0.1)
            shades = contour.contourf(u, v, loss, levels=levels, cmap="viridis")
            contour.contour(u, v, loss, levels=levels, colors="white", linewidths=0.4)
            contour.plot(0, 0, "+", color="white")
            ends = [float(u[0, 0]), 0.0, float(u[-1, 0])]
            surface.set(xticks=ends, yticks=ends, zlim=(low, high), xlabel="1", ylabel="2")
            contour.set(xticks=ends, yticks=ends)
            contour.set_title(worth(file), fontsize="small", color=RED if file["trivial"] else "black")
    if shades:
        part.colorbar(shades, ax=flat, label="loss", shrink=0.8)


def pair(study: Study, name: str) -> Drawing:
    """Two surfaces for a slide, the first and the last of the table's landscapes: one scale, camera and light.

    Random directions, and of what is there the first model and the largest epsilon, where defenses differ most.
    """
    table = study.file.tables[name]
    every = planes(study, table.landscape_ids, "random")
    model, epsilon = max(blocks(table, every), key=lambda block: block[1].value)
    ids = [id for id in table.landscape_ids if (id.model, id.epsilon) == (model, epsilon)]
    ids = list(dict.fromkeys([ids[0], ids[-1]]))
    files = {id: every[id] for id in ids if id in every}
    levels = levels_of(files, "random")
    figure, axes = plt.subplots(
        1, len(ids), figsize=(SLIDE, 0.5 * SLIDE), squeeze=False, subplot_kw={"projection": "3d"}
    )
    shade = LightSource(azdeg=225, altdeg=50)
    for axis, id in zip(axes[0], ids, strict=True):
        axis.set_title(f"{study.display(id.defense)}, $\\epsilon$ = {epsilon}", fontsize=18)
        axis.view_init(elev=28, azim=-60)
        axis.set_axis_off()
        if (file := files.get(id)) is None:
            axis.text2D(0.5, 0.5, "no result", ha="center", transform=axis.transAxes)
            continue
        u, v = np.meshgrid(file["random_axis"], file["random_axis"], indexing="ij")
        loss = np.minimum(file["random_loss"], levels[-1])
        colours = shade.shade(loss, plt.get_cmap("viridis"), vmin=levels[0], vmax=levels[-1], blend_mode="soft")
        axis.plot_surface(u, v, loss, facecolors=colours, rcount=100, ccount=100, lw=0, antialiased=False, shade=False)
        axis.set_zlim(levels[0], levels[-1])
        axis.set_box_aspect((1, 1, 0.7), zoom=1.25)
        colour = RED if file["trivial"] else "black"
        axis.text2D(0.5, 0, worth(file), ha="center", fontsize=13, color=colour, transform=axis.transAxes)
    data = [grid(id, file, "random") for id, file in files.items()]
    return Drawing(figure, pd.concat(data) if data else pd.DataFrame())


def worth(file: dict[str, np.ndarray]) -> str:
    """What must stand beside a landscape."""
    text = (
        f"clean {100 * file['clean']:.1f} %\nadversarial {100 * file['adversarial']:.1f} %\n"
        f"loss {file['loss']:.2f}, $\\lambda_\\mathrm{{max}}$ {file['lambda_max']:.2f}"
    )
    return text + ("\ntrivial classifier" if file["trivial"] else "")
