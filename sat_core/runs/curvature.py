"""How sharp a run's loss is: the Hessian in the weights, at adversarial examples of a fixed sample of images.

A collapsed network is the flattest of all, so accuracy and loss on the same sample stand beside every eigenvalue.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from sat_core.hessian import Objective, relative_flatness, spectrum, trace
from sat_core.runs import checkpoint, folder
from sat_core.runs.device import device_name, take_device
from sat_core.runs.files import verify
from sat_core.runs.heartbeat import Heart, beating
from sat_core.runs.network import trained_model
from sat_core.runs.sample import measure, sample
from sat_core.study import Run

log = logging.getLogger(__name__)


def curvature(run: Run) -> None:
    """Measure a trained run: writes ``curvature.json``: sharpness at the selected weights and at every snapshot.

    The run's folder is not locked: this may go on beside its evaluation and landscape, and the file appears whole.
    Raises ConfigError if the run is not trained with its present configuration and code, or lacks a snapshot.
    """
    with beating(run, "curvature") as heart:
        folder.write_record(run, "curvature", measured(run, heart))


def measured(run: Run, heart: Heart) -> dict[str, Any]:
    """The content of ``curvature.json``."""
    began, device, config = time.perf_counter(), take_device(run), run.curvature
    model, weights = trained_model(run, device)
    x, y = sample(run, device)
    heart.tell("curvature at the selected weights")
    selected, objective = _sharpness(run, model, x, y)
    nodes, densities = spectrum(objective, probes=config.probes, steps=config.steps, seed=config.seed)
    parameters = len(objective.theta)
    del objective  # and the graph that it keeps
    epochs: list[dict[str, Any]] = []
    for epoch in tqdm(run.training.snapshot_epochs, "snapshots", leave=False, disable=None):
        done, count = len(epochs), len(run.training.snapshot_epochs)
        heart.tell(f"curvature at snapshot {done + 1}/{count}", (done + 1) / (count + 1))
        checkpoint.load_weights(snapshot(run, epoch), model)
        epochs.append({"epoch": epoch} | _sharpness(run, model, x, y)[0])
        log.info("epoch %d: lambda_max %.4g", epoch, epochs[-1]["lambda_max"])
    log.info("selected weights: lambda_max %.4g, residual %.1g", selected["lambda_max"], selected["residual"])
    return {
        "epsilon": run.epsilon.text,
        "config": config.model_dump(mode="json"),
        "weights": weights,
        "parameters": parameters,
        "selected": {"epoch": None if run.external else folder.trained_record(run)["best_epoch"] + 1} | selected,
        "epochs": epochs,
        "spectrum": {"nodes": nodes, "weights": densities},
        "seconds": time.perf_counter() - began,
        "device": device_name(device),
    }


def _sharpness(run: Run, model: nn.Module, x: Tensor, y: Tensor) -> tuple[dict[str, Any], Objective]:
    """One network on the sample: top eigenvalue, trace, and what scaling whole layers does not change."""
    record, objective, _ = measure(run, model, x, y)
    for name, estimate in (("trace", trace), ("relative_flatness", relative_flatness)):
        record[name], record[f"{name}_error"] = estimate(objective, seed=run.curvature.seed)
    return record, objective


def snapshot(run: Run, epoch: int) -> Path:
    """The weights kept after ``epoch`` epochs; raises ConfigError if they are missing or damaged."""
    name = run.training.snapshot(epoch)
    expected = folder.trained_record(run)["files"][name]
    verify(run.folder / name, expected, f"delete {run.folder} and `train` the run again")
    return run.folder / name
