"""How sharp a run's loss is: the Hessian in the weights, at adversarial examples of a fixed sample of images.

The loss is the same for every defense, whatever it trained on: ``L(theta) = sum_i CE(f_theta(x'_i), y_i) / n`` with x'
made once by the training PGD (never stopped, seeded) against the weights at hand, and then held fixed. BatchNorm uses
its running statistics, as the attack and the evaluation do. A collapsed network is the flattest of all, so accuracy
and loss on the same sample stand beside every eigenvalue.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from tqdm import tqdm

from sat_core import checkpoint
from sat_core.attacks import cross_entropy, uniform_start
from sat_core.config import ConfigError, Run
from sat_core.data import load
from sat_core.evaluation import trained_model
from sat_core.files import read_json, write_json
from sat_core.lanczos import Eigenpairs, spectral_density, top_eigenpairs
from sat_core.training import device_name, measuring_attack, predict, take_device
from sat_core.trivial import is_trivial

log = logging.getLogger(__name__)


def curvature(run: Run) -> None:
    """Measure a trained run: writes ``curvature.json``: lambda_max at the selected weights and at every snapshot.

    The run's folder is not locked: this may go on beside its evaluation and landscape, and the file appears whole.
    Raises ConfigError if the run is not trained with its present configuration and code, or lacks a snapshot.
    """
    began, device, config = time.perf_counter(), take_device(run), run.curvature
    model, weights = trained_model(run, device)
    x, y = sample(run, device)
    selected, objective, _ = measure(run, model, x, y)
    probes = gaussians(config.probes, objective.theta, config.seed)
    nodes, densities = spectral_density(objective.product, probes, config.steps)
    epochs = []
    for epoch in tqdm(run.training.snapshot_epochs, "snapshots", leave=False, disable=None):
        checkpoint.load_weights(snapshot(run, epoch), model)
        epochs.append({"epoch": epoch} | measure(run, model, x, y)[0])
        log.info("epoch %d: lambda_max %.4g", epoch, epochs[-1]["lambda_max"])
    content = {
        "run": run.id.path,
        "epsilon": run.epsilon.text,
        "config": config.model_dump(mode="json"),
        "weights": weights,
        "parameters": len(objective.theta),
        "selected": {"epoch": read_json(run.folder / "run.json")["best_epoch"] + 1} | selected,
        "epochs": epochs,
        "spectrum": {"nodes": nodes, "weights": densities},
        "seconds": time.perf_counter() - began,
        "device": device_name(device),
    }
    write_json(run.folder / "curvature.json", content)
    log.info("selected weights: lambda_max %.4g, residual %.1g", selected["lambda_max"], selected["residual"])


def snapshot(run: Run, epoch: int) -> Path:
    """The weights kept after ``epoch`` epochs; raises ConfigError if they are missing."""
    path = run.folder / run.training.snapshot(epoch)
    if not path.exists():
        raise ConfigError(f"{path} is missing: delete {run.folder} and `train` the run again")
    return path


def sample(run: Run, device: torch.device) -> tuple[Tensor, Tensor]:
    """The images (n, C, H, W) and labels (n,) that all runs of a dataset are measured on: drawn once, by seed."""
    config = run.curvature
    (images,) = load(run, config.split)
    generator = torch.Generator().manual_seed(config.seed)
    x, y = images.batch(torch.randperm(len(images), generator=generator)[: config.images])
    return x.to(device), y.to(device)


def adversarial(run: Run, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """x' of :func:`sample`'s images: the training PGD on the cross entropy, from a start that depends on the seed."""
    torch.manual_seed(run.curvature.seed)
    attack, size = measuring_attack(run), run.curvature.batch_size
    blocks = zip(x.split(size), y.split(size), strict=True)
    return torch.cat([attack(model, a, cross_entropy(b), start=uniform_start(a, attack.epsilon)).x for a, b in blocks])


def measure(
    run: Run, model: nn.Module, x: Tensor, y: Tensor, count: int = 1
) -> tuple[dict[str, object], Objective, Eigenpairs]:
    """One network on the sample: lambda_max and what must stand beside it, the loss itself, ``count`` eigenpairs."""
    config = run.curvature
    objective = Objective(model, adversarial(run, model, x, y), y, config.batch_size)
    loss, accuracy = objective(objective.theta)
    if not math.isfinite(loss):
        raise ConfigError(f"{run.id.path}: its loss is {loss}, so it has no curvature; the training has diverged")
    (start,) = gaussians(1, objective.theta, config.seed)
    top = top_eigenpairs(objective.product, start, config.steps, config.tolerance, count)
    prediction = predict(model, x)
    record = {
        "lambda_max": top.values[0],
        "residual": top.residuals[0],
        "lanczos_steps": top.steps,
        "loss": loss,
        "clean": float((prediction == y).double().mean()),
        "adversarial": accuracy,
        "n": len(y),
        "trivial": is_trivial(pd.DataFrame({"label": y.cpu(), "prediction": prediction.cpu()})),
    }
    return record, objective, top


class Objective:
    """``L(theta) = sum_i CE(f_theta(x_i), y_i) / n`` of an eval-mode network, as a function of a flat theta (P,).

    Batches may be unequal: their losses are summed, then divided by n. ``theta``: the network's own weights.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> None:
        self.model = model.eval()
        self.batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        self.n = len(y)
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self.theta = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    def weights(self, theta: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views of a flat vector."""
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    @torch.no_grad()
    def __call__(self, theta: Tensor) -> tuple[float, float]:
        """Loss and accuracy in [0, 1] at theta."""
        weights, loss, correct = self.weights(theta), 0.0, 0
        for x, y in self.batches:
            logits = functional_call(self.model, weights, x)
            loss += F.cross_entropy(logits, y, reduction="sum").item()
            correct += int((logits.argmax(dim=1) == y).sum())
        return loss / self.n, correct / self.n

    def product(self, vector: Tensor) -> Tensor:
        """Hessian times ``vector`` (P,), exactly: the derivative of the gradient along it (Pearlmutter 1994)."""
        weights, direction, total = self.weights(self.theta), self.weights(vector), torch.zeros_like(vector)
        for x, y in self.batches:

            def loss(weights: dict[str, Tensor], x: Tensor = x, y: Tensor = y) -> Tensor:
                return F.cross_entropy(functional_call(self.model, weights, x), y, reduction="sum")

            tangents = jvp(grad(loss), (weights,), (direction,))[1]
            total += torch.cat([tangents[name].flatten() for name in self.shapes])
        return total / self.n


def gaussians(count: int, like: Tensor, seed: int) -> list[Tensor]:
    """Standard normal vectors, drawn on the CPU so that they are the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device) for _ in range(count)]
