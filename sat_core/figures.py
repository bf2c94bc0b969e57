"""The study's figures, each as png and pdf. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from sat_core.config import Epsilon, RunId, Study, Table
from sat_core.files import atomic, read_arrays, read_json
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


def curvature(study: Study, name: str) -> Figure:
    """lambda_max, and below it the accuracy without which it says nothing: over the epochs, and against epsilon.

    A line or point a run; hollow where the network was trivial. Snapshots fill the columns over epochs, if there are.
    """
    table = study.file.tables[name]
    rows = measured(study, table)
    looks = appearance(table.defenses)
    over_epochs = [e for e in table.epsilons if (~rows["selected"] & (rows["epsilon"] == e.text)).any()]
    columns = len(over_epochs) + 1
    size = (2.3 * columns + 1.2, 4.4)
    figure, axes = plt.subplots(2, columns, figsize=size, sharex="col", sharey="row", squeeze=False)
    for row, (key, label) in enumerate(
        (("lambda_max", "$\\lambda_\\mathrm{max}$ of the Hessian"), ("adversarial", ACCURACY))
    ):
        axes[row, 0].set_ylabel(label)
        for column, epsilon in enumerate(over_epochs):
            chosen = rows[~rows["selected"] & (rows["epsilon"] == epsilon.text)]
            for (defense, *_), run in chosen.groupby(["defense", "model", "seed"], sort=False):
                draw_points(
                    axes[row, column], run["epoch"], run[key], run["trivial"], *looks[defense], defense, line=True
                )
        for (defense, _), runs in rows[rows["selected"]].groupby(["defense", "model"], sort=False):
            values = runs["epsilon"].map(lambda text: Epsilon.parse(text).value)
            draw_points(axes[row, -1], values, runs[key], runs["trivial"], *looks[defense], defense)
            mean = runs[key].groupby(values).mean()
            axes[row, -1].plot(mean.index, mean, color=looks[defense][0], lw=1.3, alpha=0.6)
    for axis, epsilon in zip(axes.T, over_epochs, strict=False):
        axis[0].set_title(f"training, $\\epsilon$ = {epsilon}")
        axis[1].set_xlabel("epoch")
    axes[0, -1].set_title("selected weights")
    axes[1, -1].set_xlabel("$\\epsilon$ (pixel units)")
    axes[1, -1].set_xticks([e.value for e in table.epsilons], [e.text for e in table.epsilons])
    for axis in axes[:, -1]:
        axis.margins(x=0.15)
    axes[0, 0].set_yscale("log")
    axes[1, 0].set_ylim(-3, 103)
    outside_legend(figure, *axes.flat)
    return figure


ACCURACY = "adversarial accuracy\non the same images (%)"


def draw_points(axis, x, y, trivial, colour: str, marker: str, label: str, line: bool = False) -> None:
    """Markers, hollow where trivial, with a legend entry for each kind there is; joined if ``line``."""
    if line:
        axis.plot(x, y, color=colour, lw=1.3, alpha=0.8)
    for hollow in sorted(set(trivial)):
        fill = "white" if hollow else colour
        chosen, text = trivial == hollow, f"{label} (trivial)" if hollow else label
        axis.scatter(
            x[chosen], y[chosen], marker=marker, s=24, facecolors=fill, edgecolors=colour, zorder=3, label=text
        )


def measured(study: Study, table: Table) -> pd.DataFrame:
    """One row a measured network: address, epoch, whether it is the selected one, and curvature.json's record of it."""
    rows = []
    for id, content in curvature_files(study, table):
        address = {"model": id.model, "defense": id.defense, "epsilon": id.epsilon.text, "seed": id.seed}
        rows.append(address | content["selected"] | {"selected": True})
        rows += [address | record | {"selected": False} for record in content["epochs"]]
    columns = ["model", "defense", "epsilon", "seed", "epoch", "selected", "lambda_max", "adversarial", "trivial"]
    frame = pd.DataFrame(rows, columns=columns).astype({"selected": bool, "trivial": bool})  # also where there are none
    return frame.assign(adversarial=100 * frame["adversarial"])


def curvature_files(study: Study, table: Table) -> list[tuple[RunId, dict]]:
    """What has been measured of the table's runs."""
    paths = [(id, study.run(id).folder / "curvature.json") for id in table.curvature_ids]
    return [(id, read_json(path)) for id, path in paths if path.exists()]


def spectrum(study: Study, name: str) -> Figure:
    """The density of the Hessian's eigenvalues for the first seed of each cell, smoothed by a Gaussian kernel."""
    table = study.file.tables[name]
    looks = appearance(table.defenses)
    width = 2.6 * len(table.epsilons) + 1.4
    figure, axes = plt.subplots(1, len(table.epsilons), figsize=(width, 2.8), sharex=True, sharey=True, squeeze=False)
    found = [(id, file["spectrum"]) for id, file in curvature_files(study, table) if id.seed == table.seeds[0]]
    nodes = np.concatenate([spectrum["nodes"] for _, spectrum in found] or [[0, 1]])
    kernel = max(np.ptp(nodes), 1e-12) / 100
    t = np.linspace(nodes.min() - 4 * kernel, nodes.max() + 4 * kernel, 2000)
    for axis, epsilon in zip(axes[0], table.epsilons, strict=True):
        axis.set_title(f"$\\epsilon$ = {epsilon}")
        axis.set_xlabel("eigenvalue of the Hessian")
        for id, spectrum in found:
            if id.epsilon == epsilon:
                bells = np.exp(-0.5 * ((t[:, None] - spectrum["nodes"]) / kernel) ** 2) / (kernel * np.sqrt(2 * np.pi))
                axis.plot(t, bells @ spectrum["weights"], color=looks[id.defense][0], lw=1.3, label=id.defense)
    axes[0, 0].set(yscale="log", ylim=(1e-7, 30 / kernel), ylabel=f"density (kernel width {kernel:.2g})")
    outside_legend(figure, *axes[0])
    return figure


PLANES = {
    "random": ("1: random (filter norms)", "2: random (filter norms)"),
    "reattacked": ("1: random (filter norms)", "2: random (filter norms)"),
    "hessian": ("1: top eigenvector (weight distance)", "2: next eigenvector (weight distance)"),
    "input": ("1: sign of gradient ($\\epsilon$)", "2: random signs ($\\epsilon$)"),
}
"""What the two axes of each plane of ``landscape.npz`` are."""


def landscape(study: Study, name: str, plane: str) -> Figure:
    """The loss over one plane, defenses side by side: as a surface, and as contours below it.

    All panels of an epsilon share loss scale, colours and contour levels, which end at twice their 95 % quantile:
    corners may be thousands of times higher. Each panel says what the network is worth; a trivial one is red.
    """
    table = study.file.tables[name]
    groups = [(model, epsilon) for model in table.models for epsilon in table.epsilons]
    figure = plt.figure(figsize=(2.5 * len(table.landscapes) + 0.9, 4.6 * len(groups)))
    for part, (model, epsilon) in zip(figure.subfigures(len(groups), squeeze=False)[:, 0], groups, strict=True):
        ids = [id for id in table.landscape_ids if (id.model, id.epsilon) == (model, epsilon)]
        part.suptitle(f"$\\epsilon$ = {epsilon}" + (f", {model}" if len(table.models) > 1 else ""), fontsize=10)
        draw_planes(part, study, ids, plane)
    return figure


def draw_planes(part: SubFigure, study: Study, ids: list[RunId], plane: str) -> None:
    """Surfaces above contours, a column a run, in one scale; a run without data keeps its place, empty."""
    paths = {id: study.run(id).folder / "landscape.npz" for id in ids}
    files = {id: read_arrays(path) for id, path in paths.items() if path.exists()}
    data = {id: file for id, file in files.items() if f"{plane}_loss" in file}
    losses = np.stack([file[f"{plane}_loss"] for file in data.values()] or [np.array([[0.0, 1.0]])])
    high = min(losses.max(), 2 * np.quantile(losses, 0.95))
    levels = MaxNLocator(12).tick_values(losses.min(), high)
    low, high = levels[0], levels[-1]
    first, second = PLANES[plane]
    flat, shades = [], None
    for column, id in enumerate(ids):
        surface = part.add_subplot(2, len(ids), column + 1, projection="3d")
        contour = part.add_subplot(2, len(ids), len(ids) + column + 1)
        flat.append(contour)
        surface.set_title(f"{id.defense}: loss", fontsize=10, pad=-2)
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
            contour.set_title(worth(file), fontsize=8, color="red" if file["trivial"] else "black")
    if shades:
        part.colorbar(shades, ax=flat, label="loss", shrink=0.8)


def worth(file: dict[str, np.ndarray]) -> str:
    """What must stand beside a landscape."""
    text = (
        f"clean {100 * file['clean']:.1f} %, adversarial {100 * file['adversarial']:.1f} %\n"
        f"loss {file['loss']:.2f}, $\\lambda_\\mathrm{{max}}$ {file['lambda_max']:.2f}"
    )
    return text + ("\ntrivial classifier" if file["trivial"] else "")


def outside_legend(figure: Figure, *axes: plt.Axes) -> None:
    """One legend for the whole figure, to its right, where it hides no data."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside right upper")


KINDS: dict[str, Callable[[Study, str], Figure]] = {
    "curves": training_curves,
    "tradeoff": tradeoff,
    "curvature": curvature,
    "spectrum": spectrum,
    "landscape": partial(landscape, plane="random"),
    "landscape-reattacked": partial(landscape, plane="reattacked"),
    "landscape-hessian": partial(landscape, plane="hessian"),
    "landscape-input": partial(landscape, plane="input"),
}
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
