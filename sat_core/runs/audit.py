"""Does a difficulty track the curvature it stands for? psi against the exact Hessian, sample by sample."""

from __future__ import annotations

import logging
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn

from sat_core.attacks import cross_entropy, uniform_start
from sat_core.difficulty import (
    capture,
    classifier_curvature,
    classifier_of,
    gauss_newton_curvature,
    parametric_layers,
    probability_gap,
)
from sat_core.hessian.samples import exact_curvature
from sat_core.runs.data import load
from sat_core.runs.device import take_device
from sat_core.runs.files import atomic, write_json
from sat_core.runs.network import measuring_attack, trained_model
from sat_core.study.run import Run

log = logging.getLogger(__name__)

METRICS = ("classifier", "gauss_newton", "probability_gap")


def audit(run: Run, samples: int) -> None:
    """Compare every psi with the exact top Hessian eigenvalue on validation images along PGD iterates.

    Looks at where the training PGD starts, at its iterate half way, and at its last, each from a random start of its
    own, on ``samples`` images. Writes ``audit.csv`` (a row a sample and iterate), ``audit.json`` (Spearman's rank
    correlation of each psi with the exact value; quantiles of exact / classifier, which is at least 1 up to rounding)
    and ``audit.png`` in the run's folder.
    """
    device = take_device(run)
    model, _ = trained_model(run, device)
    (images,) = load(run, "validation")
    x, y = (t.to(device) for t in images.batch(slice(samples)))
    attack = measuring_attack(run)
    torch.manual_seed(run.seed)
    rows = []
    for name, steps in (("start", 0), ("middle", attack.steps // 2), ("last", attack.steps)):
        x_adv = replace(attack, steps=steps)(model, x, cross_entropy(y), start=uniform_start(x, attack.epsilon)).x
        columns = {"exact": exact_curvature(model, x_adv, y)} | difficulties(model, x_adv, y)
        rows.append(pd.DataFrame({k: v.cpu() for k, v in columns.items()}).assign(iterate=name))
        log.info("%s iterate: %d exact eigenvalues", name, len(y))
    table = pd.concat(rows, ignore_index=True)
    with atomic(run.folder / "audit.csv") as file:
        table.to_csv(file, index=False)
    summary = summarise(table)
    known = {
        part: {key: value if isfinite(value) else None for key, value in of.items()} for part, of in summary.items()
    }
    write_json(run.folder / "audit.json", {"samples": len(y), **known})
    draw(table, summary["spearman"], run.folder / "audit.png")
    log.info("Spearman with the exact eigenvalue: %s", summary["spearman"])


def difficulties(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Every psi at given images, (N,) each, unscaled. The model is in eval mode with frozen parameters."""
    layers = parametric_layers(model)
    with capture(*layers, deltas=True) as seen:
        leaf = x.detach().requires_grad_()
        logits = model(leaf)
        torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), leaf)
    logits = logits.detach()
    return {
        "classifier": classifier_curvature(logits, seen.inputs[classifier_of(model, logits.shape[1])]),
        "gauss_newton": gauss_newton_curvature(logits, y, seen.gradient_norm_squared()),
        "probability_gap": probability_gap(logits, y),
    }


def summarise(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Spearman of each psi with ``exact``, and quantiles of exact / classifier where the latter is not tiny.

    Of a network that says the same of every image they are not numbers.
    """
    ratio = (table["exact"] / table["classifier"])[table["classifier"] > 1e-6 * table["classifier"].max()]
    return {
        "spearman": {metric: float(spearmanr(table["exact"], table[metric]).statistic) for metric in METRICS},
        "exact_over_classifier": {f"{q:.0%}": float(ratio.quantile(q)) for q in (0.05, 0.5, 0.95)},
    }


def draw(table: pd.DataFrame, spearman: dict[str, float], path: Path) -> None:
    """Scatter of the exact eigenvalue against each psi."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, len(METRICS), sharey=True)
    for axis, metric in zip(axes, METRICS, strict=True):
        for (name, part), marker in zip(table.groupby("iterate", sort=False), "o^s", strict=True):
            axis.scatter(part[metric], part["exact"], s=12, marker=marker, alpha=0.6, label=f"{name} iterate")
        axis.set(xlabel=f"psi: {metric.replace('_', ' ')}", title=f"Spearman {spearman[metric]:.2f}")
    axes[0].set_ylabel("exact top Hessian eigenvalue")
    axes[0].legend(fontsize=7)
    with atomic(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150)
