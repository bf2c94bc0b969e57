"""What a study will do, before it does it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from sat_core import defenses, models
from sat_core.config import ConfigError, Data, Run, Study

IMAGES = {
    "digits": (1_437, 360),
    "mnist": (60_000, 10_000),
    "fashion": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenette": (9_469, 3_925),
}
"""Training and test images of the public datasets, to be known before they are downloaded."""

STANDARD_PASSES = 13_000
"""Forward passes of AutoAttack `standard` on an image that stays robust, at 10 classes, a backward counted as two.

APGD-CE 100 steps, APGD-T and FAB-T 100 steps each for 9 target classes, with backward: 3 (100 + 900 + 900) = 5,700;
FAB-T takes a second forward at each step and a search: 900 + 900; Square up to 5,000. An upper bound, rounded up.
"""


def check(study: Study, runs: Iterable[Run]) -> None:
    """Raise ConfigError unless each of these runs' network fits its images and its defense takes its options."""
    seen = set()
    splits: dict[str, Run] = {}
    for run in runs:
        first = splits.setdefault(run.dataset, run)
        if (run.data, run.validation) != (first.data, first.validation):
            raise ConfigError(
                f"{study.path}: data and validation must be the same for all runs of '{run.dataset}', but "
                f"{run.id.path} and {first.id.path} differ"
            )
        network = (run.model, run.data.model_dump_json())
        defense = (run.base, json.dumps(run.options), run.training.model_dump_json())
        try:
            if defense not in seen:
                defenses.build(run.base, run.options, run.training)
            if network not in seen:
                models.check(run.model, run.data)
        except ConfigError as error:
            raise ConfigError(f"{study.path}, {run.id.path}: {error}") from None
        if run.data.source in IMAGES:
            asked = (run.data.train_images or 0, run.evaluation.images or 0)
            for key, wanted, there in zip(("data.train_images", "evaluation.images"), asked, images(run), strict=True):
                if wanted > there:
                    raise ConfigError(f"{study.path}, {run.id.path}: {key} asks for {wanted}, but there are {there}")
        seen |= {network, defense}


def images(run: Run) -> tuple[int, int]:
    """Training and test images of a run's dataset; those of a folder are counted. Raises ConfigError."""
    if run.data.source in IMAGES:
        return IMAGES[run.data.source]
    train, test = (_count(f"{run.data.root}/{part}") for part in ("train", "test"))
    if not train or not test:
        raise ConfigError(
            f"{run.dataset}: there are no images under {run.data.root}/train and {run.data.root}/test to count"
        )
    return train, test


@cache
def _count(folder: str) -> int:
    return sum(1 for _ in Path(folder).glob("*/*"))


def forward_flops(name: str, data: Data) -> tuple[float, int]:
    """Floating-point operations of one image's forward pass, and the number of parameters; allocates nothing."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = models.build(name, data).eval()
        model(torch.empty(1, *data.image))
    return float(counter.get_total_flops()), sum(parameter.numel() for parameter in model.parameters())


def cost(run: Run, flops: float, parameters: int) -> dict[str, float]:
    """FLOPs of training and of judging a run, at most, and bytes of its files, from those of one image's forward pass.

    A backward pass counts as two forward ones, or one where only the input's gradient is asked for. A run that
    stops PGD early costs less; H-SAT's Gauss-Newton difficulty costs more and is counted as ten forward passes a step.
    """
    (train_images, test_images), held_out = images(run), run.validation.fraction
    train_images = run.data.train_images or train_images
    step = 2 + (10 if run.options.get("metric") == "gauss_newton" else 0)
    attack = 0 if run.base == "standard" else run.attack.steps * step
    passes = train_images * ((1 - held_out) * (attack + 3) + held_out * (2 * run.attack.steps + 2))
    judged = run.evaluation.images or test_images
    return {
        "training": flops * passes * run.training.epochs,
        "judging": flops * judged * STANDARD_PASSES,
        "bytes": 4 * parameters * 7,  # two checkpoints of weights, momentum, best weights; and the selected weights
    }


def estimate(study: Study, tflops: float) -> str:
    """What a study asks of a cluster, as a text table: for each dataset and model runs, GPU-hours and disk."""
    one_of_each = {(run.dataset, run.model): run for run in study.runs}
    sizes = {key: forward_flops(run.model, run.data) for key, run in one_of_each.items()}
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
