"""A study rehearsed and then run, twice: what was planned beside what was taken, and that beside itself.

*Came* is what the rehearsal would have planned had it known which steps a rule saves and which images stand. No plan is
nearer to the second time than the first time is, but by chance. *Broken* is the share of targeted APGD that an image
takes which it breaks, counted in passes: what the plan supposes is ``predict.BROKEN``.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from torch import Tensor, nn

from sat_core import judge
from sat_core.runs import folder, predict
from sat_core.runs.data import load
from sat_core.runs.judging import passes
from sat_core.runs.network import trained_model
from sat_core.study import Run, Study

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers import Project  # noqa: E402

STAGES = {"training": "train", "AutoAttack": "evaluate"}


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("config/demo.yaml"))
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="(all)")
    parser.add_argument("--out", type=Path, default=Path("results/bench/planned.csv"))
    given = parser.parse_args()
    os.environ["PYTHONDONTWRITEBYTECODE"] = ""  # as `make` has it: else some fifty processes compile what they import
    out, images = given.out.resolve(), Path("data").resolve()
    with tempfile.TemporaryDirectory() as name:
        first, again = (
            Project(Path(name) / place, yaml.safe_load(given.study.read_text()), given.study.stem)
            for place in ("first", "again")
        )
        for project in (first, again):
            if images.exists():
                (project.folder / "data").symlink_to(images)
        print(f"rehearsed in {timed(first, given.cores, '--config', 'rehearse=true'):.0f} s", flush=True)
        print(f"run in {timed(first, given.cores):.0f} s", flush=True)
        print(f"and again in {timed(again, given.cores):.0f} s", flush=True)
        plan = ("-m", "sat_core", "plan", "--study", f"config/{first.name}.yaml", "--gpus", str(given.cores))
        print(first.python(*plan, within=None))
        with contextlib.chdir(again.folder):
            took_again = [taken(run) for run in Study(f"config/{again.name}.yaml").runs]
        with contextlib.chdir(first.folder):
            table = pd.DataFrame(rows(Study(f"config/{first.name}.yaml"), took_again))
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(out, index=False)
    print(table.to_markdown(index=False, floatfmt=".2f"))
    for part in STAGES:
        for ratio in ("came/took", "again/took"):
            found = table[f"{part} {ratio}"]
            near = int(found.between(0.75, 1.25).sum())
            print(f"{part} {ratio}: {found.min():.2f} to {found.max():.2f}, within a quarter {near} of {len(found)}")
    print(f"written: {out}")


def timed(project: Project, cores: int, *arguments: str) -> float:
    """Seconds of Snakemake on a project's study."""
    began = time.perf_counter()
    project.snakemake("--cores", str(cores), "--quiet", "all", *arguments, within=None)
    return time.perf_counter() - began


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
    (images,) = load(run, "test")
    _, verdict = folder.judged(run)
    size, made = run.evaluation.batch_size, 0
    whole = passes("apgd-t", run.data.classes)

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal made
        made += len(inputs[0])

    hook = model.register_forward_hook(add)
    for number, first in enumerate(range(0, len(verdict), size)):
        before = verdict["broken_by"][first : first + size]
        judge.attack_standing(
            *(model, *images.batch(slice(first, first + len(before))), "apgd-t"),
            epsilon=run.epsilon.value,
            seed=run.evaluation.seed + number,
            classes=run.data.classes,
            broken_by=before.where(before.isin(["clean", "apgd-ce"]), "").tolist(),
            batch_size=size,
        )
    hook.remove()
    broken, standing = verdict["broken_by"].eq("apgd-t").sum(), verdict["broken_by"].isin(["fab-t", "square", ""]).sum()
    return (made / whole - standing) / broken if broken else math.nan


if __name__ == "__main__":
    main()
