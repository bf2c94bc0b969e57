"""A study in small: the same cells, rules and machines, two short epochs, a few images of each kind.

It is a study like any other, in a file of its own, which says what it changes.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pydantic
import yaml

from sat_core import defenses
from sat_core.errors import ConfigError
from sat_core.runs.data import count_images, rarest_share
from sat_core.runs.files import atomic
from sat_core.study import Run, RunId, Study
from sat_core.study.reading import read_yaml, seen_from

EPOCHS, BATCHES, IMAGES, ITERATIONS = 2, 2, 8, 10
"""Of a training; of the real size, in an epoch; for AutoAttack, and for curvature and planes twice as many; of each of
AutoAttack's attacks, which on images that stand makes 13,000 passes otherwise."""

ASKED = ("mem_mb", "train_minutes", "evaluate_minutes", "checkpoint_minutes")
"""Of `resources`: what a queue looks at, and no measurement depends on."""


def write(study: Study) -> Path:
    """Write the rehearsal of a study, unless it is there as it should be; returns its file."""
    path, text = study.rehearsal_file, yaml.safe_dump(rehearsal(study), sort_keys=False, width=110)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with atomic(path) as file:
            file.write(text)
    return path


def is_current(study: Study) -> bool:
    """Whether the rehearsal that there is is of the study as it stands now, whatever its jobs ask for."""
    path = study.rehearsal_file
    return path.exists() and _measured_by(read_yaml(path)) == _measured_by(rehearsal(study))


def _measured_by(content: dict[str, Any]) -> dict[str, Any]:
    """A rehearsal without what changes nothing that it measures."""
    overrides = []
    for override in content.get("overrides", []):
        kept = {key: value for key, value in override["set"].get("resources", {}).items() if key not in ASKED}
        said = {section: value for section, value in override["set"].items() if section != "resources"}
        if said := said | ({"resources": kept} if kept else {}):
            overrides.append({**override, "set": said})
    return {**content, "overrides": overrides}


def rehearsal(study: Study) -> dict[str, Any]:
    """What the study file of a rehearsal says: every cell with its first seed, all settings in small."""
    content = study.file.model_dump(mode="json", exclude_unset=True, exclude={"extends"})
    place = study.rehearsal_file.parent
    for name in ("rehearses", "plugins"):
        content.pop(name, None)
    if study.file.plugins:
        content["plugins"] = [seen_from(place, study.path.parent / name) for name in study.file.plugins]
    if study.externals:
        there = {name: one.moved(partial(seen_from, place)) for name, one in study.externals.items()}
        content["external"] = {n: one.model_dump(mode="json", exclude_unset=True) for n, one in there.items()}
    for name, table in content["tables"].items():
        table["seeds"] = study.file.tables[name].seeds[:1]
    for variant in content.get("variants", {}).values():
        variant.pop("options", None)  # they stand in the overrides, with their epochs in small
    tables = study.file.tables.values()
    cells = dict.fromkeys(id for table in tables for id in table.run_ids if id.seed == table.seeds[0])
    runs = [study.run(id) for id in cells]
    changed = [change for name in dict.fromkeys(run.dataset for run in runs) for change in _of_dataset(name, runs)]
    return {
        "description": f"The rehearsal of {study.path.name}, written by Snakemake.",
        "rehearses": seen_from(place, study.path),
        **{key: value for key, value in content.items() if key not in ("description", "overrides")},
        "overrides": [*_said(study, list(cells)), *changed],
    }


def _said(study: Study, cells: list[RunId]) -> list[dict[str, Any]]:
    """The study's own overrides, less the seeds that are not rehearsed."""
    found = []
    for override in study.file.overrides:
        if any(override.where.matches(id, study.base_defense(id.defense)) for id in cells):
            said = override.model_dump(mode="json", exclude_unset=True)
            if seeds := said.get("where", {}).get("seed"):
                said["where"]["seed"] = [seed for seed in seeds if any(id.seed == seed for id in cells)]
            found.append(said)
    return found


def _of_dataset(name: str, runs: list[Run]) -> list[dict[str, Any]]:
    """The overrides of a dataset: what all its runs change, then what some do; variants after what they vary."""
    runs = sorted((run for run in runs if run.dataset == name), key=lambda run: run.defense != run.base)
    images = train_images(runs)
    small = {run.id: small_settings(run) for run in runs}
    first, *others = small.values()
    shared = {  # an external, which has no schedule, keeps those of the others from being shared
        section: {
            key: value for key, value in values.items() if all(s.get(section, {}).get(key) == value for s in others)
        }
        for section, values in first.items()
        if section != "options"
    }
    if images is not None:
        shared["data"] = {"train_images": images}
    found = [{"where": {"dataset": name}, "set": shared}]
    for id, settings in small.items():
        own = {s: {k: v for k, v in values.items() if k not in shared.get(s, {})} for s, values in settings.items()}
        where = {axis: str(getattr(id, axis)) for axis in ("dataset", "model", "defense", "epsilon")}
        if own := {section: values for section, values in own.items() if values}:
            found.append({"where": where, "set": own})
    return found


def small_settings(run: Run) -> dict[str, dict[str, Any]]:
    """What a run's rehearsal sets otherwise, by section. Raises ConfigError if its schedule cannot be shortened."""
    images, planes = run.evaluation.images or IMAGES, run.landscape
    return {
        **_schedule(run),
        "evaluation": {"images": min(images, IMAGES), "iterations": ITERATIONS, "shards": 1},
        "curvature": {
            "images": min(run.curvature.images, 2 * IMAGES),
            "steps": min(run.curvature.steps, 3),
            "probes": min(run.curvature.probes, 1),
        },
        "landscape": {"points": 3, "reattack": min(planes.reattack, 3)},
    }


def _schedule(run: Run) -> dict[str, dict[str, Any]]:
    """Training and options with their epochs as shares, in the fewest epochs that the schedules allow, from two on."""
    if run.external:
        return {}
    of_all = {"epochs": run.training.epochs}
    training, options = run.training.model_dump(mode="json", exclude_unset=True), run.options
    shares = type(run.training).model_validate(training, context=of_all).model_dump(mode="json", exclude_unset=True)
    kind = defenses.find(run.base, run.defense_file)
    in_shares = kind.model_validate(options, context=of_all).model_dump(mode="json", exclude_unset=True)
    as_typed = kind.model_validate(options).model_dump(mode="json", exclude_unset=True)
    for epochs in range(min(EPOCHS, run.training.epochs), run.training.epochs + 1):
        short = shares | {"epochs": epochs, "snapshots": min(run.training.snapshots, epochs)}
        try:
            type(run.training).model_validate(short)
            defenses.build(run.base, in_shares, epochs, run.defense_file)
        except (ConfigError, pydantic.ValidationError):
            continue
        changed = {key: value for key, value in short.items() if training.get(key) != value}
        varied = run.defense != run.base  # its options are in the overrides only
        return {"training": changed, "options": in_shares if varied or in_shares != as_typed else {}}
    raise ConfigError(f"{run.id.path}: its schedule cannot be rehearsed: does `check` accept the study?")


def train_images(runs: list[Run]) -> int | None:
    """How many training images a dataset's rehearsal takes, those held out among them; None: all there are.

    Enough for a few batches of the largest size, and for each class, the rarest too, on both sides of the split.
    """
    held_out, classes = runs[0].validation.fraction, runs[0].data.classes
    counted, _ = count_images(runs[0])  # of folders that are not there, a sentence
    there = runs[0].data.train_images or counted
    batches = BATCHES * max(run.training.batch_size for run in runs) / (1 - held_out)
    wanted = math.ceil(max(batches, classes / held_out, classes / (1 - held_out), 3 / (rarest_share(runs[0]) or 1)))
    return wanted if wanted + classes <= there else runs[0].data.train_images
