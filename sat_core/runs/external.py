"""A network that was not trained here, as a run: where others are trained, its weights are brought in."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from sat_core import models
from sat_core.errors import ConfigError, in_one_line
from sat_core.runs import checkpoint, folder
from sat_core.runs.data import load
from sat_core.runs.device import device_name, take_device
from sat_core.runs.files import atomic
from sat_core.runs.network import fresh_model
from sat_core.runs.weights import fit
from sat_core.sanity import doubts
from sat_core.study import Run
from sat_core.study.external import External

log = logging.getLogger(__name__)

IMAGES = 64
"""Validation images that a network is tried on before anything is said about it."""


def bring_in(run: Run, external: External) -> None:
    """Write the weights as ``model.safetensors``, an empty history, and ``run.json``, as a training would.

    ``run.json`` says ``external``: the file, its checksum, and ``doubts``, what speaks against an attack's verdict.
    Raises ConfigError where code, weights and images do not fit.
    """
    device = take_device(run)
    model = network(run, external).to(device)
    (images,) = load(run, "validation")
    x, y = (tensor.to(device) for tensor in images.batch(slice(IMAGES)))
    try:
        found = doubts(model, x, y)
    except RuntimeError as error:
        raise ConfigError(f"{external.model}: its output cannot be differentiated in the image: {error}") from None
    for doubt in found:
        log.warning("%s: %s", run.defense, doubt)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # those that are tied are shared
    checkpoint.save_weights(run.folder / folder.WEIGHTS, weights)
    with atomic(run.folder / folder.HISTORY) as file:
        file.write("epoch\n")
    record = {
        "external": external.settings() | {"model": external.model, "file": external.weights, "doubts": found},
        "best_epoch": None,
        "seconds": 0.0,
        "device": device_name(device),
        "config": run.model_dump(mode="json"),
    }
    folder.write_record(run, "train", record)
    log.info("%s: brought in from %s", run.folder, external.weights)


def network(run: Run, external: External) -> models.Normalized:
    """The network with its weights, on the CPU; raises ConfigError where code, weights and images do not fit."""
    try:
        model = fresh_model(run)
        fit(Path(external.weights), model, run.model, external.prefix)
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, *run.data.image))
    except ConfigError:
        raise
    except Exception as error:  # of someone else's code
        raise ConfigError(f"{external.model} does not run: {in_one_line(error)}") from None
    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != (2, run.data.classes):
        raise ConfigError(f"{external.model} gives {found} for two images, not logits (2, {run.data.classes})")
    return model
