"""Planes through a run's loss, as numbers: the loss of curvature, on the same images."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from sat_core.hessian.planes import ImagePlane, grid, random_directions, reattacked_plane, weight_plane
from sat_core.runs import folder
from sat_core.runs.device import device_name, take_device
from sat_core.runs.files import atomic
from sat_core.runs.heartbeat import Heart, beating
from sat_core.runs.network import trained_model
from sat_core.runs.sample import adversarial, measure, sample
from sat_core.study import Run

log = logging.getLogger(__name__)


def landscape(run: Run) -> None:
    """Lay the planes through a trained run's selected weights: writes ``landscape.npz``.

    For each plane: ``<plane>_axis`` (m,), ``<plane>_loss`` and ``<plane>_accuracy`` (m, m), where [i, j] is at
    (axis[i], axis[j]); the centre is [m // 2, m // 2]. Beside them the record of :func:`sample.measure` as scalars,
    ``hessian_values`` (2,), the eigenvalues along the axes of that plane, and ``weights``, a checksum. Like curvature,
    it needs no lock. Raises ConfigError if the run is not trained with its present configuration and code.
    """
    with beating(run, "landscape") as heart:
        lay_planes(run, heart)


def lay_planes(run: Run, heart: Heart) -> None:
    """What :func:`landscape` does."""
    device, config = take_device(run), run.landscape
    model, weights = trained_model(run, device)
    x, y = sample(run, device)
    heart.tell("eigenvectors of the Hessian")
    record, objective, top = measure(run, model, x, y, count=2)
    random = random_directions(objective, config.seed)
    eigen = [vector * vector[vector.abs().argmax()].sign() for vector in top.vectors]
    images = ImagePlane(model, x, y, run.epsilon.value, config.seed, run.curvature.batch_size)
    heart.tell(f"planes of {config.points} x {config.points} points")
    planes = {
        "random": grid(weight_plane(objective, *random), config.random, config.points),
        "hessian": grid(weight_plane(objective, *eigen), config.hessian, config.points),
        "input": grid(images, config.input, config.points),
    }
    if config.reattack:
        heart.tell(f"a plane of {config.reattack} x {config.reattack} points, attacked anew")
        surface = reattacked_plane(objective, *random, lambda: adversarial(run, model, x, y))
        planes["reattacked"] = grid(surface, config.random, config.reattack)
    arrays: dict[str, Any] = {
        f"{plane}_{key}": value for plane, values in planes.items() for key, value in values.items()
    }
    with atomic(run.folder / "landscape.npz", "wb") as file:
        np.savez_compressed(file, **arrays, **record, hessian_values=top.values, weights=weights)
    folder.write_record(run, "landscape", record | {"weights": weights, "device": device_name(device)})
    log.info("planes %s of %d x %d points", ", ".join(planes), config.points, config.points)
