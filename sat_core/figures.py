"""The study's figures, each as png and pdf. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from sat_core.config import Epsilon, RunId, Study, Table
from sat_core.files import atomic, read_arrays, read_json
from sat_core.tables import ADDRESS, address, histories, results

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
WIDTH = 5.9
"""Inches: the text width of a common page, so that nothing is scaled down and the fonts stay legible."""
COLOURS = ["#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#E69F00"]
"""Okabe and Ito's palette, which the colour-blind can tell apart."""
RED = "#C00000"
MARKERS = "osD^vP*"


def appearance(defenses: list[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each defense, the same in every figure of a table."""
    return {d: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, d in enumerate(defenses)}


def panels(rows: int, columns: int, height: float, **sharing: Any) -> tuple[Figure, np.ndarray]:
    """A figure of a given height (inches), as wide as the text of a page, and its axes (rows, columns)."""
    return plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **sharing)


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
    looks = appearance(table.defenses)
    groups = blocks(table)
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
                        label=defense,
                    )
    legend(figure, axes[0, 0])
    return figure


def tradeoff(study: Study, name: str) -> Figure:
    """Clean against robust accuracy, a marker a run; trivial runs are hollow."""
    table = study.file.tables[name]
    rows = results(study, table)
    looks = appearance(table.defenses)
    groups = blocks(table)
    figure, axes = panels(1, len(groups), 3.4, sharex=True, sharey=True)
    for axis, (model, epsilon) in zip(axes[0], groups, strict=True):
        axis.set_title(heading(table, model, epsilon, "\n"))
        axis.set_xlabel("clean accuracy (%)")
        axis.set(xlim=(-3, 103), ylim=(-3, 103))
        for defense in table.defenses:
            chosen = in_block(rows, model, epsilon, defense)
            draw_points(axis, chosen["clean"], chosen["robust"], chosen["trivial"], *looks[defense], defense)
    axes[0, 0].set_ylabel("AutoAttack accuracy (%)")
    legend(figure, *axes[0])
    return figure


def examples(study: Study, name: str) -> Figure:
    """Clean images beside what each defense's network makes of them under attack, for the first seed.

    A column a defense; two rows an image: the perturbed image under the predictions, and the perturbation.
    """
    table = study.file.tables[name]
    groups = blocks(table)
    runs = [id for id in table.run_ids if id.seed == table.seeds[0]]
    files = existing(study, runs, "examples.npz", read_arrays)
    count = max((len(file["label"]) for file in files.values()), default=1)
    figure = plt.figure(figsize=(WIDTH, (0.4 + 1.8 * count) * len(groups)))
    for part, group in zip(figure.subfigures(len(groups), squeeze=False)[:, 0], groups, strict=True):
        part.suptitle(heading(table, *group), fontsize=10)
        axes = part.subplots(2 * count, 1 + len(table.defenses), squeeze=False)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[], frame_on=False)
            axis.spines[:].set(visible=True, color="0.6", linewidth=0.5)
        axes[0, 0].set_title("clean", fontsize=8)
        ids = [id for id in runs if (id.model, id.epsilon) == group]
        for column, id in enumerate(ids, start=1):
            axes[0, column].set_title(id.defense, fontsize=8)
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


def blocks(table: Table) -> list[tuple[str, Epsilon]]:
    """What is never drawn over one another: runs of another model or another epsilon."""
    return [(model, epsilon) for model in table.models for epsilon in table.epsilons]


def in_block(rows: pd.DataFrame, model: str, epsilon: Epsilon, defense: str | None = None) -> pd.DataFrame:
    """The rows of one model and epsilon, and of one defense if it is given."""
    rows = rows[(rows["model"] == model) & (rows["epsilon"] == epsilon.text)]
    return rows if defense is None else rows[rows["defense"] == defense]


def heading(table: Table, model: str, epsilon: Epsilon, between: str = ", ") -> str:
    """Of a block of panels: epsilon, and the model where there are several."""
    return f"$\\epsilon$ = {epsilon}" + (f"{between}{model}" if len(table.models) > 1 else "")


def curvature(study: Study, name: str) -> Figure:
    """lambda_max, and below it the accuracy without which it says nothing: over the epochs, and against epsilon.

    A line or point a run; hollow where the network was trivial. Snapshots fill the columns over epochs, if there are.
    """
    table = study.file.tables[name]
    rows = measured(study, table)
    looks = appearance(table.defenses)
    snapshots, selected = rows[~rows["selected"]], rows[rows["selected"]]
    over_epochs = [block for block in blocks(table) if len(in_block(snapshots, *block))]
    figure, axes = panels(2, len(over_epochs) + len(table.models), 4.6, sharex="col", sharey="row")
    for row, (key, label) in enumerate(
        (("lambda_max", "$\\lambda_\\mathrm{max}$ of the Hessian"), ("adversarial", ACCURACY))
    ):
        axes[row, 0].set_ylabel(label)
        for axis, block in zip(axes[row], over_epochs, strict=False):
            for (defense, _), run in in_block(snapshots, *block).groupby(["defense", "seed"], sort=False):
                draw_points(axis, run["epoch"], run[key], run["trivial"], *looks[defense], defense, line=True)
        for axis, model in zip(axes[row, len(over_epochs) :], table.models, strict=True):
            for defense, runs in selected[selected["model"] == model].groupby("defense", sort=False):
                values = runs["epsilon"].map(lambda text: Epsilon.parse(text).value)
                draw_points(axis, values, runs[key], runs["trivial"], *looks[defense], defense)
                mean = runs[key].groupby(values).mean()
                axis.plot(mean.index, mean, color=looks[defense][0], lw=1.3, alpha=0.6)
    for (top, bottom), block in zip(axes.T, over_epochs, strict=False):
        top.set_title("training, " + heading(table, *block, "\n"))
        bottom.set_xlabel("epoch")
    for (top, bottom), model in zip(axes.T[len(over_epochs) :], table.models, strict=True):
        top.set_title("selected weights" + (f"\n{model}" if len(table.models) > 1 else ""))
        bottom.set_xlabel("$\\epsilon$ (pixel units)")
        bottom.set_xticks([e.value for e in table.epsilons], [e.text for e in table.epsilons])
        bottom.margins(x=0.15)
    axes[0, 0].set_yscale("log")
    axes[1, 0].set_ylim(-3, 103)
    legend(figure, *axes.flat)
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
    for id, content in existing(study, table.curvature_ids, "curvature.json", read_json).items():
        rows.append(address(id) | content["selected"] | {"selected": True})
        rows += [address(id) | record | {"selected": False} for record in content["epochs"]]
    columns = [*ADDRESS, "epoch", "selected", "lambda_max", "adversarial", "trivial"]
    frame = pd.DataFrame(rows, columns=columns).astype({"selected": bool, "trivial": bool})  # also where there are none
    return frame.assign(adversarial=100 * frame["adversarial"])


def existing(study: Study, ids: list[RunId], file: str, read: Callable[[Path], dict]) -> dict[RunId, dict]:
    """The content of that file of each run which has it, made with the weights that the run has now."""
    found = {}
    for id in ids:
        path, record = study.run(id).folder / file, study.run(id).folder / "run.json"
        if path.exists() and record.exists():
            content = read(path)
            if str(content.get("weights")) == read_json(record)["files"]["model.safetensors"]:
                found[id] = content
    return found


def spectrum(study: Study, name: str) -> Figure:
    """The density of the Hessian's eigenvalues for the first seed of each cell, smoothed by a Gaussian kernel."""
    table = study.file.tables[name]
    looks = appearance(table.defenses)
    groups = blocks(table)
    figure, axes = panels(1, len(groups), 3, sharex=True, sharey=True)
    first_seed = [id for id in table.curvature_ids if id.seed == table.seeds[0]]
    measurements = existing(study, first_seed, "curvature.json", read_json)
    found = [(id, content["spectrum"]) for id, content in measurements.items() if content["spectrum"]["nodes"]]
    nodes = np.concatenate([spectrum["nodes"] for _, spectrum in found] or [[0, 1]])
    kernel = max(np.ptp(nodes), 1e-12) / 100
    t = np.linspace(nodes.min() - 4 * kernel, nodes.max() + 4 * kernel, 2000)
    for axis, group in zip(axes[0], groups, strict=True):
        axis.set_title(heading(table, *group, "\n"))
        for id, spectrum in found:
            if (id.model, id.epsilon) == group:
                bells = np.exp(-0.5 * ((t[:, None] - spectrum["nodes"]) / kernel) ** 2) / (kernel * np.sqrt(2 * np.pi))
                axis.plot(t, bells @ spectrum["weights"], color=looks[id.defense][0], lw=1.3, label=id.defense)
    figure.supxlabel("eigenvalue of the Hessian", fontsize="medium")
    axes[0, 0].set(yscale="log", ylim=(1e-7, 30 / kernel), ylabel=f"density (kernel width {kernel:.2g})")
    legend(figure, *axes[0])
    return figure


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
    groups = blocks(table)
    figure = plt.figure(figsize=(WIDTH, (1.3 + 7 / max(len(table.landscapes), 2)) * len(groups)))
    for part, (model, epsilon) in zip(figure.subfigures(len(groups), squeeze=False)[:, 0], groups, strict=True):
        ids = [id for id in table.landscape_ids if (id.model, id.epsilon) == (model, epsilon)]
        part.suptitle(heading(table, model, epsilon), fontsize=10)
        draw_planes(part, study, ids, plane)
    return figure


def draw_planes(part: SubFigure, study: Study, ids: list[RunId], plane: str) -> None:
    """Surfaces above contours, a column a run, in one scale; a run without data keeps its place, empty."""
    files = existing(study, ids, "landscape.npz", read_arrays)
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


def legend(figure: Figure, *axes: plt.Axes) -> None:
    """One legend for the whole figure, above it, where it hides no data."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)


KINDS: dict[str, Callable[[Study, str], Figure]] = {
    "curves": training_curves,
    "tradeoff": tradeoff,
    "examples": examples,
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
        try:
            figure = KINDS[kind](study, name)
            base = study.folder / "figures" / f"{name}-{kind}"
            for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
                with atomic(base.with_name(f"{base.name}.{suffix}"), "wb") as file:
                    figure.savefig(file, format=suffix, metadata=metadata)
        finally:
            plt.close("all")  # a kind whose data are damaged has left one behind
    return base.with_name(f"{base.name}.png")
