"""Whether every run of a study can be trained, before any is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from importlib.util import find_spec

from sat_core import defenses, models
from sat_core.errors import ConfigError
from sat_core.runs import external
from sat_core.runs.data import PUBLIC, check_sample
from sat_core.study import Run, Study


def check(study: Study, runs: Iterable[Run]) -> None:
    """Raise ConfigError unless each of these runs' network fits its images and its defense takes its options."""
    seen: set[tuple[str, ...]] = set()
    splits: dict[str, Run] = {}
    for run in runs:
        first = splits.setdefault(run.dataset, run)
        if (run.data, run.validation) != (first.data, first.validation):
            raise ConfigError(
                f"{study.path}: data and validation must be the same for all runs of '{run.dataset}', but "
                f"{run.id.path} and {first.id.path} differ"
            )
        network = (str(run.external or run.model), run.data.model_dump_json())
        defense = (run.base, json.dumps(run.options), run.training.model_dump_json())
        try:
            if defense not in seen and run.external is None:
                check_defense(run)
            if network not in seen:
                check_network(run)
            check_counts(run)
            check_extras(run)
        except ConfigError as error:
            raise ConfigError(f"{study.path}, {run.id.path}: {error}") from None
        seen |= {network, defense}


def check_network(run: Run) -> None:
    """Raise ConfigError unless the network accepts the images, and one from elsewhere its weights."""
    if run.external is None:
        models.check(**run.network)
    else:
        external.network(run, run.external)


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


def check_extras(run: Run) -> None:
    """Raise ConfigError where a run is to be shown in TensorBoard, which is not installed."""
    if run.training.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError("training.tensorboard: it is not installed here: pip install tensorboard")


def check_counts(run: Run) -> None:
    """Raise ConfigError where a public dataset has fewer images than the run asks for."""
    if run.data.source in PUBLIC:
        train, test = PUBLIC[run.data.source]
        check_sample(run.data, train)
        if (run.evaluation.images or 0) > test:
            raise ConfigError(f"evaluation.images asks for {run.evaluation.images}, but there are only {test}")
        count, fraction, classes = run.data.train_images or train, run.validation.fraction, run.data.classes
        apart = math.ceil(fraction * count)
        if min(apart, count - apart) < classes:
            raise ConfigError(
                f"validation.fraction {fraction:g} of {count} training images is {apart}: it and the rest must be "
                f"{classes} at least, one of each class"
            )
