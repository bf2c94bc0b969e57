"""The loss over a plane, defenses side by side."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from sat_core.report.figures.style import RED, WIDTH, blocks, existing, heading
from sat_core.study import RunId, Study

PLANES = {
    "random": ("1: random (filter norms)", "2: random (filter norms)"),
    "reattacked": ("1: random (filter norms)", "2: random (filter norms)"),
    "hessian": ("1: top eigenvector\n(distance in weights)", "2: next eigenvector\n(distance in weights)"),
    "input": ("1: sign of gradient ($\\epsilon$)", "2: random signs ($\\epsilon$)"),
}
"""What the two axes of each plane of ``landscape.npz`` are."""


def landscape(study: Study, name: str, plane: str) -> Figure:
    """The loss over one plane, defenses side by side: as a surface, and as contours below it.

    All panels of an epsilon share loss scale, colours and contour levels, which end at twice their 95 % quantile:
    corners may be thousands of times higher. Each panel says what the network is worth; a trivial one is red.
    """
    table = study.file.tables[name]
    groups = blocks(table.landscape_ids)
    figure = plt.figure(figsize=(WIDTH, (1.3 + 7 / max(len(table.landscapes), 2)) * len(groups)))
    for part, (model, epsilon) in zip(figure.subfigures(len(groups), squeeze=False)[:, 0], groups, strict=True):
        ids = [id for id in table.landscape_ids if (id.model, id.epsilon) == (model, epsilon)]
        part.suptitle(heading(table, model, epsilon), fontsize=10)
        draw_planes(part, study, ids, plane)
    return figure


def draw_planes(part: SubFigure, study: Study, ids: list[RunId], plane: str) -> None:
    """Surfaces above contours, a column a run, in one scale; a run without data keeps its place, empty."""
    files = existing(study, ids, "landscape", "landscape.npz")
    data = {id: file for id, file in files.items() if f"{plane}_loss" in file}
    losses = np.concatenate([file[f"{plane}_loss"].ravel() for file in data.values()] or [np.array([0.0, 1.0])])
    high = min(losses.max(), 2 * np.quantile(losses, 0.95))
    levels = MaxNLocator(12).tick_values(losses.min(), high)
    low, high = levels[0], levels[-1]
    first, second = PLANES[plane]
    flat, shades = [], None
    for column, id in enumerate(ids):
        surface = part.add_subplot(2, len(ids), column + 1, projection="3d")
        contour = part.add_subplot(2, len(ids), len(ids) + column + 1)
        flat.append(contour)
        surface.set_title(f"{study.display(id.defense)}: loss", fontsize=10, pad=-2)
        surface.tick_params(labelsize=7, pad=-3)
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
            contour.set_title(worth(file), fontsize=8, color=RED if file["trivial"] else "black")
    if shades:
        part.colorbar(shades, ax=flat, label="loss", shrink=0.8)


def worth(file: dict[str, np.ndarray]) -> str:
    """What must stand beside a landscape."""
    text = (
        f"clean {100 * file['clean']:.1f} %\nadversarial {100 * file['adversarial']:.1f} %\n"
        f"loss {file['loss']:.2f}, $\\lambda_\\mathrm{{max}}$ {file['lambda_max']:.2f}"
    )
    return text + ("\ntrivial classifier" if file["trivial"] else "")
