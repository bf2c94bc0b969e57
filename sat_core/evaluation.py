"""The judge: official AutoAttack (`standard`, L_inf, fixed seed) on the test images, recorded image by image."""

from __future__ import annotations

import csv
import logging
import time

import pyautoattack
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sat_core import checkpoint, models
from sat_core.config import ConfigError, Run
from sat_core.data import load
from sat_core.files import atomic, read_json, sole_writer, write_json
from sat_core.provenance import training_digest
from sat_core.training import choose_device, device_name, predict

log = logging.getLogger(__name__)

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
"""AutoAttack's `standard`, in its order."""


def evaluate(run: Run) -> None:
    """Judge a trained run: writes ``autoattack.csv`` (one row an image) and ``autoattack.json`` (the summary).

    ``broken_by`` names the attack that broke an image, ``clean`` if it was misclassified to begin with, and is empty
    for a robust one. Raises ConfigError if the run has not been trained with its present configuration and code.
    """
    device = choose_device()
    torch.set_num_threads(run.resources.threads)
    with sole_writer(run.folder):
        model = trained_model(run, device)
        (images,) = load(run, "test")
        count = min(len(images), run.evaluation.images or len(images))
        rows, seconds = [], dict.fromkeys(ATTACKS, 0.0)
        size = run.evaluation.batch_size
        for first in tqdm(range(0, count, size), "AutoAttack", leave=False, disable=None):
            x, y = (tensor.to(device) for tensor in images.batch(slice(first, min(first + size, count))))
            prediction, broken_by = judge(model, x, y, run.epsilon.value, run.evaluation.seed, seconds)
            rows += zip(range(first, first + len(y)), y.tolist(), prediction.tolist(), broken_by, strict=True)
            log.info("%d of %d images judged", len(rows), count)
        with atomic(run.folder / "autoattack.csv") as file:
            csv.writer(file).writerows([("index", "label", "prediction", "broken_by"), *rows])
        summary = summarise(run, [row[3] for row in rows], seconds)
        write_json(run.folder / "autoattack.json", summary | {"device": device_name(device)})


def trained_model(run: Run, device: torch.device) -> nn.Module:
    """The selected network of a trained run: float32, eval mode, parameters frozen."""
    record = run.folder / "run.json"
    if not record.exists():
        raise ConfigError(f"{record} is missing: the run is not trained yet; `train` it first")
    if read_json(record)["digest"] != training_digest(run):
        raise ConfigError(f"{record} is of another configuration or code; `train` the run again first")
    model = models.build(run.model, run.data)
    checkpoint.load_weights(run.folder / "model.safetensors", model)
    return model.to(device).eval().requires_grad_(False)


def judge(
    model: nn.Module, x: Tensor, y: Tensor, epsilon: float, seed: int, seconds: dict[str, float]
) -> tuple[Tensor, list[str]]:
    """AutoAttack on one block of images: clean predictions (N,), and for each image what broke it.

    The four attacks run one by one, each on the images that all before it left standing, which is what AutoAttack
    does itself; only so does one learn which attack broke which image. Adds the time of each to ``seconds``.
    """
    prediction = predict(model, x)
    broken_by = ["" if right else "clean" for right in (prediction == y).tolist()]
    for attack in ATTACKS:
        standing = torch.tensor([i for i, by in enumerate(broken_by) if not by], device=x.device)
        if not len(standing):
            break
        began = time.perf_counter()
        adversary = pyautoattack.AutoAttack(model, eps=epsilon, norm="Linf", seed=seed, device=x.device)
        adversary.attacks_to_run = [attack]
        x_adv, _ = adversary.run_standard_evaluation(x[standing], y[standing], batch_size=len(x))
        fooled = predict(model, x_adv) != y[standing]
        for i in standing[fooled].tolist():
            broken_by[i] = attack
        seconds[attack] += time.perf_counter() - began
    return prediction, broken_by


def summarise(run: Run, broken_by: list[str], seconds: dict[str, float]) -> dict[str, object]:
    """The content of ``autoattack.json``: accuracies in [0, 1] out of what broke each image."""
    standing, n = len(broken_by) - broken_by.count("clean"), len(broken_by)
    clean, after = standing / n, {}
    for attack in ATTACKS:
        standing -= broken_by.count(attack)
        after[attack] = standing / n
    return {
        "epsilon": run.epsilon.text,
        "norm": "Linf",
        "version": "standard",
        "pyautoattack": pyautoattack.__version__,
        "seed": run.evaluation.seed,
        "batch_size": run.evaluation.batch_size,
        "n": n,
        "clean": clean,
        "after": after,
        "robust": after[ATTACKS[-1]],
        "seconds": seconds,
    }
