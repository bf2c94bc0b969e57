"""Which settings of a study's jobs do not fit what its rehearsal measured, and what to set instead."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import yaml

from sat_core.runs import predict
from sat_core.runs.files import atomic
from sat_core.runs.predict import Cell
from sat_core.study import Run, Study
from sat_core.study.reading import merge, read_yaml

MARGIN = 1.25
"""What is asked for, over the most that is predicted."""
LOOSE = 8
"""So many times what is needed makes a job wait in the queue for nothing."""
JOB_MB = 500
"""Main memory of the two Snakemakes that a job on a cluster consists of."""
USABLE = 0.9
"""Of a GPU's memory."""
OWN_MB = 600
"""What a process takes of it beside torch's tensors: CUDA's context, and what cuDNN and cuBLAS have."""


@dataclass(frozen=True)
class Misfit:
    """What does not fit the runs of a dataset and model: a sentence, and the ``resources`` that would."""

    dataset: str
    model: str
    said: str
    resources: dict[str, int] = field(default_factory=dict)


def misfits(cells: list[Cell], limits: dict[str, Any]) -> list[Misfit]:
    """All of them, network by network: memory, time, runs on a GPU, batches."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.runs[0].dataset, cell.runs[0].model), []).append(cell)
    return [misfit for group in groups.values() for misfit in [*_jobs(group, limits), *_on_gpu(group)]]


def _jobs(cells: list[Cell], limits: dict[str, Any]) -> list[Misfit]:
    first, found, all_needed = cells[0].runs[0], [], needed_by(cells)
    name = f"{first.dataset}/{first.model}"
    for key, needed in all_needed.items():
        least = min(getattr(run.resources, key) for cell in cells for run in cell.runs)
        if least < needed or least > LOOSE * needed:
            much = "more than" if least < needed else "far less than"
            said = f"{name}: {key} {least}, but {much} that is needed: {needed}"
            found.append(Misfit(first.dataset, first.model, said, {key: needed}))
    most, minutes = limits.get("max_minutes"), all_needed["train_minutes"]
    if most and minutes > most:
        turns = math.ceil(minutes / most)
        said = f"{name}: a training takes up to {minutes} minutes, which is {turns} jobs of the "
        found.append(Misfit(first.dataset, first.model, f"{said}{most} that the profile allows; it goes on by itself"))
    for key, limit in (("evaluate_minutes", "max_minutes"), ("mem_mb", "max_mem_mb")):
        if limits.get(limit) and all_needed[key] > limits[limit]:
            said = f"{name}: {key} {all_needed[key]}, but the profile allows {limits[limit]}"
            found.append(Misfit(first.dataset, first.model, f"{said} ({limit}): raise that, if the site does"))
    return found


def needed_by(cells: list[Cell]) -> dict[str, int]:
    """What the jobs of these cells need, the most of each, with a margin: settings of ``resources``."""
    pairs = [(cell, cell.runs[0]) for cell in cells]
    memory = max(predict.memory_needed(run, cell.costs) for cell, run in pairs)
    judged = max(max(cell.judging.high * _largest_share(run), cell.measuring) for cell, run in pairs)
    startup = max(cell.costs.startup for cell, _ in pairs)
    trained = max(cell.training.high for cell, _ in pairs)
    return {
        "mem_mb": 500 * math.ceil((MARGIN * memory + JOB_MB) / 500),
        "train_minutes": _minutes(trained + startup),
        "evaluate_minutes": _minutes(judged + startup),
    }


def _largest_share(run: Run) -> float:
    """Of judging a run, that of the shard with the most blocks: a block is not divided."""
    blocks = math.ceil(predict.counts(run)[2] / run.evaluation.batch_size)
    return math.ceil(blocks / run.evaluation.shards) / blocks


def _minutes(seconds: float) -> int:
    """At least five: a node may be slow to start, and nothing is won by less."""
    return max(5, math.ceil(MARGIN * seconds / 60))


def _on_gpu(cells: list[Cell]) -> list[Misfit]:
    first, costs = cells[0].runs[0], max((cell.costs for cell in cells), key=lambda costs: costs.memory.get("gpu", 0))
    if "gpu" not in costs.memory:
        return []
    name, found = f"{first.dataset}/{first.model}", []
    peak, room, shared = costs.memory["gpu"] + OWN_MB, USABLE * costs.measured["gpu_mb"], first.resources.runs_per_gpu
    if shared * peak > room:
        fits = max(n for n in (1, 2, 4, 8) if n == 1 or n * peak <= room)
        said = f"{name}: runs_per_gpu {shared}, but one takes {peak:.0f} MB of the GPU's {room / USABLE:.0f}"
        found.append(Misfit(first.dataset, first.model, said, {"runs_per_gpu": fits}))
    for piece, setting in (("judging", "evaluation.batch_size"), ("curvature", "curvature.batch_size")):
        if any(piece in cell.costs.measured["too_large"] for cell in cells):
            said = (
                f"{name}: {setting} takes more than the GPU's memory; halve it in the study: it is part of the result"
            )
            found.append(Misfit(first.dataset, first.model, said))
    return found


def overrides(misfits: list[Misfit]) -> list[dict[str, Any]]:
    """What to set, an override a dataset and model."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for misfit in misfits:
        if misfit.resources:
            found.setdefault((misfit.dataset, misfit.model), {}).update(misfit.resources)
    return [{"where": {"dataset": d, "model": m}, "set": {"resources": values}} for (d, m), values in found.items()]


def as_yaml(overrides: list[dict[str, Any]]) -> str:
    """As it would stand in a study."""
    return yaml.safe_dump({"overrides": overrides}, sort_keys=False, default_flow_style=None, width=110).rstrip()


def write(study: Study, misfits: list[Misfit]) -> None:
    """Put what the jobs need into the study's resources file, beside what stands there."""
    path, found = study.resources_file, overrides(misfits)
    before = (read_yaml(path) or {}).get("overrides", []) if path.exists() else []
    for i, new in enumerate(found):
        old = next((one for one in before if one.get("where") == new["where"]), None)
        if old is not None:
            before.remove(old)
            found[i] = merge(old, new)
    with atomic(path) as file:
        file.write(f"# What the jobs of {study.path.name} were measured to need: `plan --write`.\n")
        file.write(as_yaml([*before, *found]) + "\n")
