"""A study rehearsed and then run, twice: what was planned beside what was taken, and that beside itself.

*Came* is what the rehearsal would have planned had it known which steps a rule saves and which images stand. No plan is
nearer to the second time than the first time is, but by chance. *Broken* is the share of targeted APGD that an image
takes which it breaks, counted in passes: what the plan supposes is ``predict.BROKEN``.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from whole import blocks, command_line, fresh, timed, write

from sat_core.judge import attack_standing
from sat_core.runs import folder, predict
from sat_core.runs.judging import passes
from sat_core.runs.network import trained_model
from sat_core.study import Run, Study

STAGES = {"training": "train", "AutoAttack": "evaluate"}


def main() -> None:
    """The command line: see `--help`."""
    given = command_line(__doc__, "results/bench/planned.csv").parse_args()
    study = f"config/{given.study.stem}.yaml"
    with tempfile.TemporaryDirectory() as name:
        first, again = (fresh(Path(name) / place, given.study) for place in ("first", "again"))
        print(f"rehearsed in {timed(first, given.cores, '--config', 'rehearse=true'):.0f} s", flush=True)
        print(f"run in {timed(first, given.cores):.0f} s", flush=True)
        print(f"and again in {timed(again, given.cores):.0f} s", flush=True)
        print(first.python("-m", "sat_core", "plan", "--study", study, "--gpus", str(given.cores), within=None))
        with contextlib.chdir(again.folder):
            took_again = [taken(run) for run in Study(study).runs]
        with contextlib.chdir(first.folder):
            table = pd.DataFrame(rows(Study(study), took_again))
    write(table, given.out, ".2f")
    for part in STAGES:
        for ratio in ("came/took", "again/took"):
            found = table[f"{part} {ratio}"]
            near = int(found.between(0.75, 1.25).sum())
            print(f"{part} {ratio}: {found.min():.2f} to {found.max():.2f}, within a quarter {near} of {len(found)}")


def taken(run: Run) -> dict[str, float]:
    """Seconds that a finished run took."""
    return {part: float(folder.seconds_of(folder.record_of(run, stage)) or 0) for part, stage in STAGES.items()}


def rows(study: Study, took_again: list[dict[str, float]]) -> Iterator[dict[str, Any]]:
    """A row a run."""
    rehearsal = Study(study.rehearsal_file)
    costs = predict.in_common({run.id.path: predict.costs_of(rehearsal, run) for run in study.runs})
    for run, second in zip(study.runs, took_again, strict=True):
        took, known = taken(run), costs[run.id.path]
        assert known is not None, f"{run.id.path} has not been rehearsed"
        came = {
            "training": predict.training_as_it_came(run, known, pd.read_csv(run.folder / folder.HISTORY)),
            "AutoAttack": predict.judging_as_it_came(run, known, folder.record_of(run, "evaluate")),
        }
        row: dict[str, Any] = {"run": run.id.path}
        for part in STAGES:
            row |= {
                f"{part} took": took[part],
                f"{part} came/took": came[part] / took[part],
                f"{part} again/took": second[part] / took[part],
            }
        yield row | {"broken": share_of_the_broken(run)}


def share_of_the_broken(run: Run) -> float:
    """Passes of targeted APGD on an image that it breaks, over those on one that stands; it attacks once more."""
    model, _ = trained_model(run, torch.device("cpu"))
    _, verdict = folder.judged(run)
    broken_by, made, done = verdict["broken_by"], 0, 0

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal made
        made += len(inputs[0])

    hook = model.register_forward_hook(add)
    for x, y, seed in blocks(run):
        before = broken_by[done : done + len(y)]
        done += len(y)
        attack_standing(
            *(model, x, y, "apgd-t"),
            epsilon=run.epsilon.value,
            seed=seed,
            classes=run.data.classes,
            broken_by=before.where(before.isin(["clean", "apgd-ce"]), "").tolist(),
            batch_size=run.evaluation.batch_size,
        )
    hook.remove()
    broken, standing = broken_by.eq("apgd-t").sum(), broken_by.isin(["fab-t", "square", ""]).sum()
    return (made / passes("apgd-t", run.data.classes) - standing) / broken if broken else math.nan


if __name__ == "__main__":
    main()
