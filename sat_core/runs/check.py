"""Whether every run of a study can be trained, before any is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import Tensor

from sat_core import defenses, models
from sat_core.attacks import Iterate, Perturbation, cross_entropy
from sat_core.defenses import SelfPaced
from sat_core.difficulty import capture, classifier_of, parametric_layers
from sat_core.errors import ConfigError, in_one_line
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
        raise ConfigError(f"model '{run.model}' does not run: {in_one_line(error)}") from None


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
        try:
            state = defense.initial_state(2 * IMAGES, x.device)
            _check_state(state)
            attack = replace(training_attack(run), steps=2)
            for n in (IMAGES, IMAGES - 1):  # a second step, on what the first has kept; of a batch of another size
                index = torch.arange(2 * IMAGES - n, 2 * IMAGES)
                batch = defenses.Batch(model, x[:n], y[:n], index, run.data.classes, 0, attack, state)
                _check_inside(defense, batch)
                found = defense.perturb(batch)
                if not model.training:
                    raise ConfigError("perturb leaves the network in eval mode: use sat_core.frozen")
                _check_found(defense, batch, found)
                _check_state(state)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"defense '{run.base}' cannot take a step with model '{run.model}': {in_one_line(error)}"
            ) from None


def _check_state(state: object) -> None:
    """That what a defense keeps can stand in a checkpoint."""
    if not isinstance(state, dict):
        raise ConfigError(f"initial_state gives {type(state).__name__}, not a dict of tensors")
    for name, kept in state.items():
        if not isinstance(kept, Tensor):
            raise ConfigError(f"state['{name}'] is no tensor but {type(kept).__name__}: a checkpoint could not hold it")


def _check_inside(defense: defenses.Defense, batch: defenses.Batch) -> None:
    """What a defense asks of the network, and a difficulty of its own."""
    if defense.looks_inside and getattr(defense, "metric", None) == "classifier":
        classifier = classifier_of(batch.model, batch.classes)
        with capture(*parametric_layers(batch.model)) as seen:
            batch.model(batch.x)
        last, features = list(seen.inputs.items())[-1]
        if last is not classifier or features.ndim != 2:
            raise ConfigError(
                "the difficulty is taken from what enters the classifier, so that the layer with parameters that is "
                f"made last must be called last, on (N, features): it is {last} on {tuple(features.shape)}"
            )
    if isinstance(defense, SelfPaced) and type(defense).difficulty is not SelfPaced.difficulty:
        found: list[Tensor] = []

        def look(iterate: Iterate) -> Tensor:
            found.append(defense.checked_difficulty(batch, iterate))
            return iterate.rows > 0  # the first stops: from then on the rows are not those of the batch

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
    if not isinstance(found.steps, Tensor) or found.steps.shape != batch.y.shape:
        raise ConfigError(f"perturb gives steps {found.steps}, where a number for each of {len(batch.x)} is expected")
    loss = defense.outer_loss(batch, found)
    if loss.ndim or not loss.requires_grad:
        raise ConfigError(f"outer_loss gives {tuple(loss.shape)}: a scalar that can be differentiated is expected")
    if not loss.isfinite():
        raise ConfigError(f"outer_loss gives {loss.item()} on random images and weights")
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
