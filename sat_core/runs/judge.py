"""One network from elsewhere, judged alone: a study of one run, whose files all lie in one folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sat_core.errors import ConfigError
from sat_core.runs.files import atomic
from sat_core.study import Run, Study
from sat_core.study.address import Epsilon

NAME = "judged"


def alone(
    check: Callable[[Study, list[Run]], None],
    out: Path,
    dataset: str,
    epsilon: str,
    external: dict[str, Any],
    images: int | None = None,
) -> tuple[Study, Run]:
    """``judge.yaml`` in the folder ``out`` as a study; and its run, which has its files there.

    ``external``: as in a study, its files as seen from the working directory. Raises ConfigError as a study and
    ``check`` do; only what they let pass is written.
    """
    try:
        Epsilon.parse(epsilon)
    except ValueError as error:
        raise ConfigError(f"--epsilon: {error}") from None
    place, _, function = external["model"].rpartition(":")
    model = f"{_seen(out, place)}:{function}" if place.endswith(".py") else external["model"]
    there = external | {"model": model, "weights": _seen(out, external["weights"])}
    settings = [] if images is None else [{"set": {"evaluation": {"images": images}}}]
    content = {
        "tables": {NAME: {"dataset": dataset, "defenses": [NAME], "epsilons": [epsilon]}},
        "external": {NAME: {key: value for key, value in there.items() if value is not None}},
        "overrides": settings,
    }
    study = Study(out / "judge.yaml", content)
    (run,) = study.runs
    check(study, [run])
    with atomic(study.path) as file:
        yaml.safe_dump(content, file, sort_keys=False)
    return study, run.model_copy(update={"place": out.as_posix()})


def _seen(out: Path, name: str) -> str:
    if not Path(name).is_file():
        raise ConfigError(f"{name}: there is no such file")
    return Path(os.path.relpath(name, out)).as_posix()
