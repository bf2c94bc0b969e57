"""A whole study, or one run of it, from nothing: the time it takes over the sum of what no way of doing it is without.

The floor of a training are its steps' (docs/performance.md: input gradients, as many as its samples took, and the outer
loss, no optimiser) and its validation's (one input gradient a step of PGD and two forward passes); that of a judgement
is the time inside the network, forward and backward, while AutoAttack runs again on the same images. Nothing is taken
for granted of curvature, planes, tables, figures, report, start-up and Snakemake: all of that is above the floor.
Floors are taken right after the study, one after the other; the study may use ``--cores`` at a time. All
but the wall is in seconds of a core.
"""

from __future__ import annotations

import argparse
import contextlib
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

from sat_core.errors import ConfigError
from sat_core.judge import autoattack
from sat_core.runs import folder
from sat_core.runs.data import load
from sat_core.runs.network import trained_model
from sat_core.runs.trainer import Trainer
from sat_core.study import Run, Study

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from helpers import Project  # noqa: E402
from steps import floor_of, floor_parts, measure  # noqa: E402

ROUNDS = 30


def training_floor(run: Run) -> tuple[float, float]:
    """Seconds that the steps and the validations of a finished training cannot do without."""
    trainer = Trainer(run)
    order, size = torch.arange(len(trainer.train_images)), run.training.batch_size
    _, x, y = next(trainer.train_images.batches(order, size))
    parts = pd.DataFrame(measure(floor_parts(trainer.model, x, y, 1), ROUNDS)).median()
    beyond = floor_of(run.base, parts) - parts["input gradients"]
    history = pd.read_csv(run.folder / "history.csv")
    attacked = history["steps"] if trainer.defense.selects_on == "robust" else 0 * history["steps"]
    steps = trainer.steps_an_epoch * float((attacked * parts["input gradients"] + beyond).sum())
    x, y = trainer.validation_images.batch(slice(0, 250))
    trainer.model.eval()
    parts = pd.DataFrame(measure(floor_parts(trainer.model, x, y, 1), ROUNDS)).median()
    once = parts["forward"] + history["validation_clean"] * (run.attack.steps * parts["input gradients"])
    return steps, float(once.sum()) * len(trainer.validation_images) / len(x)


@contextlib.contextmanager
def inside(model: nn.Module) -> Iterator[list[float]]:
    """The seconds of each forward pass of a network, and of each gradient that is asked for, while the block runs."""
    seconds: list[float] = []
    gradient, began = torch.autograd.grad, []

    def timed(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        start = time.perf_counter()
        found = gradient(*arguments, **options)
        seconds.append(time.perf_counter() - start)
        return found

    before = model.register_forward_pre_hook(lambda *_: began.append(time.perf_counter()))
    after = model.register_forward_hook(lambda *_: seconds.append(time.perf_counter() - began.pop()))
    torch.autograd.grad = timed
    try:
        yield seconds
    finally:
        torch.autograd.grad = gradient
        before.remove()
        after.remove()


def judging_floor(run: Run) -> float:
    """Seconds inside the network while a trained run is judged again; fails if the verdict is another."""
    model, _ = trained_model(run, torch.device("cpu"))
    count = robust = 0
    with inside(model) as seconds:
        for x, y, seed in blocks(run):
            size = run.evaluation.batch_size
            verdict = autoattack(model, x, y, epsilon=run.epsilon.value, seed=seed, batch_size=size)
            robust += verdict.broken_by.count("")
            count += len(y)
    assert robust / count == folder.record_of(run, "evaluate")["robust"], "judged again, the verdict is another"
    return sum(seconds)


def blocks(run: Run) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The images and labels that a run is judged on, block by block, each with AutoAttack's seed."""
    (images,) = load(run, "test")
    count, size = min(len(images), run.evaluation.images or len(images)), run.evaluation.batch_size
    for number, first in enumerate(range(0, count, size)):
        yield *images.batch(slice(first, min(first + size, count))), run.evaluation.seed + number


def timed(project: Project, cores: int, *arguments: str) -> float:
    """Seconds that Snakemake takes for a project's study."""
    began = time.perf_counter()
    project.snakemake("--cores", str(cores), "--quiet", "all", *arguments, within=None)
    return time.perf_counter() - began


def one_run(project: Project, run: str) -> float:
    """Seconds that one run takes, up to its verdict."""
    study = f"config/{project.name}.yaml"
    project.python("-P", "-m", "sat_core", "data", "--study", study, "--dataset", run.split("/")[0], within=None)
    began = time.perf_counter()
    for verb in ("train", "evaluate"):
        project.python("-P", "-m", "sat_core", verb, "--study", study, "--run", run, within=None)
    return time.perf_counter() - began


def command_line(description: str | None, out: str) -> argparse.ArgumentParser:
    """The options of a benchmark that takes a study from nothing, and writes ``out``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("config/demo.yaml"))
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="for the whole study (all)")
    parser.add_argument("--out", type=Path, default=Path(out))
    os.environ["PYTHONDONTWRITEBYTECODE"] = ""  # as `make` has it: else some fifty processes compile what they import
    return parser


def fresh(folder: Path, study: Path) -> Project:
    """A copy of the project with this study, none of it done, and the images that are here."""
    project = Project(folder, yaml.safe_load(study.read_text()), study.stem)
    if Path("data").exists():
        (project.folder / "data").symlink_to(Path("data").resolve())
    return project


def write(table: pd.DataFrame, out: Path, form: str) -> None:
    """A table as csv, and printed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(out, index=False)
    print(table.to_markdown(index=False, floatfmt=form))
    print(f"written: {out.resolve()}")


def main() -> None:
    """The command line: see `--help`."""
    parser = command_line(__doc__, "results/bench/whole.csv")
    parser.add_argument("--run", help="this one alone, trained and judged (the whole study)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        project = fresh(Path(name) / "project", given.study)
        wall = one_run(project, given.run) if given.run else timed(project, given.cores)
        with contextlib.chdir(project.folder):
            study = Study(Path(f"config/{project.name}.yaml"))
            runs = [study.run(given.run)] if given.run else study.runs
            table = pd.DataFrame(rows(study, runs))
    write(table, given.out, ".1f")
    cores, total = runs[0].resources.threads if given.run else given.cores, table.drop(columns="run").sum()
    floor = total[["steps floor", "validation floor", "judging floor"]].sum()
    rest = wall * cores - total["training"] - total["judging"]
    print(f"wall {wall:.1f} s on {cores} of the processor's cores, floors {floor:.1f} s: {wall * cores / floor:.2f}")
    print(f"training {total['training']:.1f} s, judging {total['judging']:.1f} s, all else and idle {rest:.1f} s")


def rows(study: Study, runs: list[Run]) -> Iterator[dict[str, Any]]:
    """What each run took, beside its floors, in seconds times its threads."""
    for run in runs:
        torch.set_num_threads(threads := run.resources.threads)
        steps, validation = training_floor(run)
        yield {
            "run": run.id.path,
            "training": threads * folder.seconds_of(folder.record_of(run, "train")),
            "steps floor": threads * steps,
            "validation floor": threads * validation,
            "judging": threads * folder.seconds_of(folder.record_of(run, "evaluate")),
            "judging floor": threads * judging_floor(run),
        }


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
