"""What a study will do, before it does it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from sat_core import defenses, models
from sat_core.config import ConfigError, Run


def check(runs: Iterable[Run]) -> None:
    """Raise ConfigError unless every run's network fits its images and its defense takes its options."""
    seen = set()
    splits: dict[str, Run] = {}
    for run in runs:
        first = splits.setdefault(run.dataset, run)
        if (run.data, run.validation) != (first.data, first.validation):
            raise ConfigError(
                f"{run.study}: data and validation must be the same for all runs of '{run.dataset}', but "
                f"{run.id.path} and {first.id.path} differ"
            )
        key = json.dumps(
            [run.model, run.base, run.training_config["data"], run.training_config["training"], run.options]
        )
        if key not in seen:
            seen.add(key)
            try:
                defenses.build(run.base, run.options, run.training)
                models.check(run.model, run.data)
            except ConfigError as error:
                raise ConfigError(f"{run.study}, {run.id.path}: {error}") from None
