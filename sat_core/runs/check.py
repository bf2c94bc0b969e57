"""Whether every run of a study can be trained, before any is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from sat_core import defenses, models
from sat_core.attacks import Iterate, Perturbation, cross_entropy
from sat_core.defenses import SelfPaced
from sat_core.difficulty import capture, parametric_layers
from sat_core.errors import ConfigError
from sat_core.runs import external
from sat_core.runs.data import PUBLIC, check_sample, count_images
from sat_core.runs.network import fresh_model, training_attack
from sat_core.study import Run, Study

IMAGES = 4
"""On which a step is tried."""
SLACK = 1e-5
"""What a rounding may take a number beyond its bounds."""


def check(study: Study, runs: Iterable[Run]) -> None:
    """Raise ConfigError unless each of these runs' network fits its images and its defense takes its options."""
    seen: set[tuple[str, ...]] = set()
    splits: dict[str, Run] = {}
    for run in runs:
        first = splits.setdefault(run.dataset, run)
        if (run.data, run.validation.fraction) != (first.data, first.validation.fraction):
            raise ConfigError(
                f"{study.path}: data and validation.fraction must be the same for all runs of '{run.dataset}', but "
                f"{run.id.path} and {first.id.path} differ"
            )
        network = (str(run.external or run.model), run.data.model_dump_json())
        defense = (run.base, json.dumps(run.options), run.training.model_dump_json())
        both = network + defense
        try:
            if defense not in seen and run.external is None:
                check_defense(run)
            if network not in seen:
                check_network(run)
            if both not in seen and run.external is None and (run.defense_file or run.model_file):
                check_step(run)
            check_counts(run)
            check_extras(run)
        except ConfigError as error:
            raise ConfigError(f"{study.path}, {run.id.path}: {error}") from None
        except SystemExit as error:
            told = f"one's own code has ended the process: sys.exit({error.code})"
            raise ConfigError(f"{study.path}, {run.id.path}: {told}") from None
        seen |= {network, defense, both}


def check_network(run: Run) -> None:
    """Raise ConfigError unless the network accepts the images, and one from elsewhere its weights."""
    if run.external is not None:
        external.network(run, run.external)
        return
    try:
        models.check(**run.network)
    except ConfigError:
        raise
    except Exception as error:
        if run.model_file is None:
            raise
        raise ConfigError(f"model '{run.model}' does not run: {type(error).__name__}: {error}") from None


def check_defense(run: Run) -> None:
    """Raise ConfigError unless the defense takes its options and can be trained as the run asks."""
    defense = defenses.build(run.base, run.options, run.training.epochs, run.defense_file)
    if defense.looks_inside and run.training.compile:
        raise ConfigError(
            f"defense '{run.base}' looks at the network's layers, which a compiled network hides; leave "
            "training.compile out"
        )
    if getattr(defense, "metric", None) == "gauss_newton" and run.attack.batchnorm == "train":
        raise ConfigError(
            "options.metric gauss_newton is of samples alone: attack.batchnorm: train makes each depend on the others"
        )


def check_step(run: Run) -> None:
    """Raise ConfigError unless a step of training can be taken with someone's own defense or network, on four images.

    They are random, and so are the weights: what the loss and the difficulty are worth is not asked.
    """
    defense = defenses.build(run.base, run.options, run.training.epochs, run.defense_file)
    with torch.random.fork_rng(devices=[]):
        model = fresh_model(run).train()
        x, y = torch.rand(IMAGES, *run.data.image), torch.arange(IMAGES) % run.data.classes
        state = defense.initial_state(IMAGES, x.device)
        if odd := [name for name, kept in state.items() if not isinstance(kept, Tensor)]:
            kind = type(state[odd[0]]).__name__
            raise ConfigError(f"defense '{run.base}': initial_state['{odd[0]}'] is no tensor but {kind}")
        batch = defenses.Batch(
            *(model, x, y, torch.arange(IMAGES), run.data.classes, 0, replace(training_attack(run), steps=2), state)
        )
        try:
            _check_inside(defense, batch)
            _check_found(defense, batch, defense.perturb(batch))
        except ConfigError:
            raise
        except Exception as error:
            told = " ".join(str(error).split())
            raise ConfigError(
                f"defense '{run.base}' cannot take a step with model '{run.model}': {type(error).__name__}: {told}"
            ) from None


def _check_inside(defense: defenses.Defense, batch: defenses.Batch) -> None:
    """What a defense asks of the network, and a difficulty of its own."""
    if defense.looks_inside and getattr(defense, "metric", None) == "classifier":
        layers = parametric_layers(batch.model)
        with capture(*layers) as seen:
            batch.model(batch.x)
        last, features = list(seen.inputs.items())[-1]
        if last is not layers[-1] or not isinstance(last, nn.Linear) or features.ndim != 2:
            raise ConfigError(
                "the difficulty is taken from what enters the classifier, so that the layer with parameters that is "
                f"made and called last must be an nn.Linear on (N, features), not {type(layers[-1]).__name__} made "
                f"and {type(last).__name__} called last"
            )
    if isinstance(defense, SelfPaced) and type(defense).difficulty is not SelfPaced.difficulty:
        found: list[Tensor] = []

        def look(iterate: Iterate) -> Tensor:
            found.append(defense.difficulty(batch, iterate))
            return iterate.rows >= 0

        batch.attack(batch.model, batch.x, cross_entropy(batch.y), start=batch.x, keep_going=look)
        _, high = defense.difficulty_range
        for difficulty in found:
            if not (difficulty <= high + SLACK).all():  # nor of NaN; one below the lowest lambda is merely easy
                raise ConfigError(f"its difficulty is {difficulty.tolist()}, but its range ends at {high:g}")


def _check_found(defense: defenses.Defense, batch: defenses.Batch, found: Perturbation) -> None:
    """What a defense has found of a batch, and its loss on it."""
    if not isinstance(found, Perturbation):
        raise ConfigError(f"perturb gives {type(found).__name__}, not a Perturbation(x, steps)")
    low, high = found.x.min().item(), found.x.max().item()
    if found.x.shape != batch.x.shape or not 0 <= low <= high <= 1:
        raise ConfigError(
            f"perturb gives images {tuple(found.x.shape)} from {low:g} to {high:g}: {tuple(batch.x.shape)} within 0 "
            "and 1 are expected"
        )
    loss = defense.outer_loss(batch, found)
    if loss.ndim or not loss.requires_grad:
        raise ConfigError(f"outer_loss gives {tuple(loss.shape)}: a scalar that can be differentiated is expected")
    loss.backward()


def check_extras(run: Run) -> None:
    """Raise ConfigError where a run is to be shown in TensorBoard, which is not installed."""
    if run.training.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError("training.tensorboard: it is not installed here: pip install tensorboard")


def check_counts(run: Run) -> None:
    """Raise ConfigError where a dataset has fewer images than the run asks for."""
    try:
        _, there = count_images(run)
    except ConfigError:
        return  # which is told once the images are read
    if (run.evaluation.images or 0) > there:
        raise ConfigError(f"evaluation.images asks for {run.evaluation.images}, but there are only {there}")
    if run.data.source in PUBLIC:
        train, _ = PUBLIC[run.data.source]
        check_sample(run.data, train)
        count, fraction, classes = run.data.train_images or train, run.validation.fraction, run.data.classes
        apart = math.ceil(fraction * count)
        if min(apart, count - apart) < classes:
            raise ConfigError(
                f"validation.fraction {fraction:g} of {count} training images is {apart}: it and the rest must be "
                f"{classes} at least, one of each class"
            )
