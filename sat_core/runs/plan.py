"""What a study will ask of a cluster, before it does."""

from __future__ import annotations

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from sat_core.runs.data import count_images
from sat_core.runs.network import fresh_model
from sat_core.study import Run, Study

STANDARD_PASSES = 13_000
"""Forward passes of AutoAttack `standard` on an image that stays robust, at 10 classes, a backward counted as two.

APGD-CE 100 steps, APGD-T and FAB-T 100 steps each for 9 target classes, with backward: 3 (100 + 900 + 900) = 5,700;
FAB-T takes a second forward at each step and a search: 900 + 900; Square up to 5,000. An upper bound, rounded up.
"""


def forward_flops(run: Run) -> tuple[float, int]:
    """Floating-point operations of one image's forward pass, and the number of parameters; allocates nothing."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = fresh_model(run).eval()
        model(torch.empty(1, *run.data.image))
    return float(counter.get_total_flops()), sum(parameter.numel() for parameter in model.parameters())


def cost(run: Run, flops: float, parameters: int) -> dict[str, float]:
    """FLOPs of training and of judging a run, at most, and bytes of its files, from those of one image's forward pass.

    A backward pass counts as two forward ones, or one where only the input's gradient is asked for. A run that
    stops PGD early costs less; H-SAT's Gauss-Newton difficulty costs more and is counted as ten forward passes a step.
    """
    (train_images, test_images), held_out = count_images(run), run.validation.fraction
    train_images = run.data.train_images or train_images
    step = 2 + (10 if run.options.get("metric") == "gauss_newton" else 0)
    attack = 0 if run.base == "standard" else run.attack.steps * step
    passes = train_images * ((1 - held_out) * (attack + 3) + held_out * (2 * run.attack.steps + 2))
    judged = run.evaluation.images or test_images
    return {
        "training": 0.0 if run.external else flops * passes * run.training.epochs,
        "judging": flops * judged * STANDARD_PASSES,
        "bytes": 4 * parameters * 7,  # two checkpoints of weights, momentum, best weights; and the selected weights
    }


def estimate(study: Study, tflops: float) -> str:
    """What a study asks of a cluster, as a text table: for each dataset and model runs, GPU-hours and disk."""
    one_of_each = {(run.dataset, run.model): run for run in study.runs}
    sizes = {key: forward_flops(run) for key, run in one_of_each.items()}
    rows = [
        {"dataset": run.dataset, "model": run.model, "runs": 1, **cost(run, *sizes[run.dataset, run.model])}
        for run in study.runs
    ]
    table = pd.DataFrame(rows).groupby(["dataset", "model"], sort=False).sum()
    table.loc[("all", ""), :] = table.sum()
    hours = table[["training", "judging"]] / (tflops * 1e12 * 3600)
    shown = pd.DataFrame(
        {
            "runs": table["runs"].astype(int),
            "training GPU-h": hours["training"].round(1),
            "AutoAttack GPU-h <=": hours["judging"].round(1),
            "disk GB": (table["bytes"] / 1e9).round(1),
        }
    )
    return (
        f"{shown.to_string()}\n"
        f"GPU-hours: floating-point operations counted on the networks, at {tflops:g} TFLOP/s sustained. That rate is "
        "an assumption: pass --tflops with what a run of yours reaches."
    )
