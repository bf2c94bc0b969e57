"""A run's network: fresh, or trained; what it predicts; and the attacks that it trains with and is measured by."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from sat_core import models
from sat_core.attacks import PGD, cross_entropy, uniform_start, while_correct
from sat_core.errors import Hopeless
from sat_core.runs import checkpoint, folder
from sat_core.runs.images import Images
from sat_core.study import Run


def fresh_model(run: Run) -> models.Normalized:
    """The run's network with random weights, drawn from torch's global RNG, on the CPU."""
    return models.build(**run.network)


def trained_model(
    run: Run, device: torch.device, which: str = "best", precision: Literal["float32", "tf32"] = "float32"
) -> tuple[nn.Module, str]:
    """The selected (or ``last``) network of a trained run, in eval mode, frozen, and its weights' checksum.

    Raises ConfigError if the run is not trained with its present configuration and code.
    """
    name = folder.WEIGHTS if which == "best" else folder.LAST
    weights = folder.trained_weights(run, name)
    model = fresh_model(run)
    models.compute_in(precision, model)
    checkpoint.load_weights(run.folder / name, model)
    return model.to(device).eval().requires_grad_(False), weights


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Predicted classes int64 (N,), in eval mode. Raises Hopeless for outputs that are not finite: NaN's is class 0."""
    logits = model.eval()(x)
    if not logits.isfinite().all():
        raise Hopeless("the network's outputs are not finite on images as they are or attacked")
    return logits.argmax(dim=1)


def accuracies(model: nn.Module, images: Images, attack: PGD, batch_size: int) -> tuple[float, float]:
    """Clean accuracy and accuracy under ``attack`` on cross entropy, both in [0, 1].

    An image counts as broken as soon as any iterate is misclassified, and is not attacked further.
    """
    correct = robust = 0
    for start in range(0, len(images), batch_size):
        x, y = images.batch(slice(start, start + batch_size))
        clean = predict(model, x) == y
        if not clean.any():
            continue
        correct += int(clean.sum())
        x, y = x[clean], y[clean]
        perturbation = attack(
            model, x, cross_entropy(y), start=uniform_start(x, attack.epsilon), keep_going=while_correct(y)
        )
        robust += int((predict(model, perturbation.x) == y).sum())
    return correct / len(images), robust / len(images)


SMALL = 2_000_000
"""Networks of fewer parameters leave most of a GPU idle: `cnn` has 0.7 million, PreActResNet-18 11 million."""


def is_small(model: nn.Module) -> bool:
    """Whether a GPU, on such a network, waits for the processor and not the other way round."""
    return sum(parameter.numel() for parameter in model.parameters()) < SMALL


def at_once(run: Run, model: nn.Module, device: torch.device) -> int:
    """How many images are validated at a time: on a GPU as many as fit beside a training, or fill it."""
    if device.type != "cuda":
        return 250
    return 2000 if is_small(model) else run.training.batch_size


def training_attack(run: Run) -> PGD:
    """The PGD that the run trains with."""
    epsilon = run.epsilon.value
    return PGD(epsilon, run.attack.relative_step_size * epsilon, run.attack.steps, run.attack.batchnorm)


def measuring_attack(run: Run) -> PGD:
    """The training PGD for a network as it is judged: its batch norms use their running statistics."""
    return replace(training_attack(run), batchnorm="eval")


def validation_attack(run: Run) -> PGD:
    """The PGD that chooses the epoch: :func:`measuring_attack`, unless ``validation`` has steps or sizes of its own.

    A defense of one step should not be chosen by one.
    """
    attack, own = measuring_attack(run), run.validation
    size = attack.step_size if own.relative_step_size is None else own.relative_step_size * run.epsilon.value
    return replace(attack, steps=own.steps or attack.steps, step_size=size)
