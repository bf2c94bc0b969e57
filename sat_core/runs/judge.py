"""One network from elsewhere, judged alone: a study of one run, whose files all lie in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sat_core.errors import ConfigError
from sat_core.runs.files import atomic
from sat_core.runs.folder import STAGES
from sat_core.study import Run, Study
from sat_core.study.address import Epsilon
from sat_core.study.reading import read_yaml, seen_from

NAME, STUDY = "judged", "judge.yaml"


def alone(
    out: Path, dataset: str, epsilon: str, external: dict[str, Any], images: int | None = None
) -> tuple[Study, Run]:
    """``judge.yaml`` in the folder ``out``, not written yet, as a study; and its run, which has its files in ``out``.

    ``external``: as in a study, its files as seen from the working directory; raises ConfigError as a study does.
    """
    refuse_what_is_others(out, Path(external["weights"]))
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
    study = Study(out / STUDY, content)
    (run,) = study.runs
    refuse_another_question(out, content)
    return study, run.model_copy(update={"place": out.as_posix()})


def refuse_what_is_others(out: Path, weights: Path) -> None:
    """Raise ConfigError where results would be written over files that are not those of an earlier `judge`."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is a file; name a folder")
    if weights.is_file() and out.resolve() == weights.resolve().parent:
        raise ConfigError(f"--out: {out} holds the weights themselves, {weights}; name another folder")
    if not (out / STUDY).exists() and out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out: {out} holds other files; name a new folder, or one that `judge` has made")


def refuse_another_question(out: Path, content: dict[str, Any]) -> None:
    """Raise ConfigError where the folder holds the verdict on something else: none that is finished is replaced."""
    if (out / STAGES["evaluate"].record).exists() and read_yaml(out / STUDY) != content:
        raise ConfigError(
            f"--out: {out} holds a verdict on another question, as its {STUDY} says; name another folder, or delete it"
        )


def keep(study: Study) -> None:
    """Write ``judge.yaml``, so that the folder says what was asked."""
    with atomic(study.path) as file:
        yaml.safe_dump(study.content, file, sort_keys=False)


def _seen(out: Path, name: str) -> str:
    if not Path(name).is_file():
        raise ConfigError(f"{name}: there is no such file")
    return seen_from(out, name)
