"""What tests share that is no fixture: a small study, a copy of the project, and Snakemake on it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from torch import nn

from sat_core.judge import ATTACKS
from sat_core.runs import folder
from sat_core.runs.files import checksum, write_json
from sat_core.runs.trainer import Trainer
from sat_core.study import Run, Study

REPOSITORY = Path(__file__).resolve().parent.parent
PARTS = ("sat_core", "workflow", "config", "profiles", "slurm", "envs")
"""The folders of which a project consists."""
SNAKEMAKE = Path(sys.executable).with_name("snakemake")

TINY = {
    "tables": {
        "digits": {
            "dataset": "digits",
            "models": ["cnn"],
            "defenses": ["madry", "psat"],
            "epsilons": [0.3],
            "seeds": [0],
        }
    },
    "overrides": [
        {"set": {"training": {"epochs": 2, "milestones": [1]}, "attack": {"steps": 2}, "evaluation": {"images": 12}}},
        {
            "where": {"defense": "psat"},
            "set": {"options": {"curriculum": {"kind": "steps", "epochs": [1], "start": 0.01}}},
        },
    ],
}
"""P-SAT stops a quarter of the samples in the first epoch, and none in the second."""
MADRY, PSAT = (f"digits/cnn/{defense}/eps0.3/seed0" for defense in ("madry", "psat"))
"""The two runs of it."""


def tiny_with(**settings) -> dict:
    """The small study with these settings for each of its runs."""
    return TINY | {"overrides": [*TINY["overrides"], {"set": settings}]}


def edited(study: Study, **settings) -> Study:
    """A study in whose file these settings have been added for each of its runs."""
    content = yaml.safe_load(study.path.read_text(encoding="utf-8"))
    content["overrides"].append({"set": settings})
    study.path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return Study(study.path)


class Wrapped(nn.Module):
    """A network whose output goes through a function."""

    def __init__(self, network, last):
        super().__init__()
        self.network, self.last = network, last

    def forward(self, x):
        return self.last(self.network(x))


def script(path: str) -> ModuleType:
    """A Python file of the project that belongs to no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def damage(run, name: str) -> None:
    """Cut a result short, as an accident to the file would: what is kept of it is the same file, or as damaged."""
    for path in (run.folder / name, run.folder / ".kept" / name):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])


def run_epoch(trainer) -> None:
    """One whole epoch of a Trainer."""
    for _ in trainer.steps():
        pass
    trainer.finish_epoch()


def stop_after(monkeypatch, steps: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Send this process a signal in the middle of the given optimiser step, once."""
    original, count = Trainer.step, iter(range(1, 10**9))

    def step(self, *batch):
        if next(count) == steps:
            os.kill(os.getpid(), number)
        return original(self, *batch)

    monkeypatch.setattr(Trainer, "step", step)


def results(run) -> tuple:
    """Everything a finished run says, less the times."""
    verdict = run.folder / "autoattack.csv"
    return (
        (run.folder / "model.safetensors").read_bytes(),
        pd.read_csv(run.folder / "history.csv").drop(columns="seconds").to_csv(),
        verdict.read_bytes() if verdict.exists() else None,
    )


def forget(run: Run, stage: str) -> None:
    """Delete the result of a stage, and that it was ever made."""
    about = folder.STAGES[stage]
    for name in (*about.files, about.record):
        (run.folder / name).unlink()
        (run.folder / folder.KEPT / name).unlink()


def write_run(run: Run, predictions: Sequence[int], broken_by: list[str], steps: float = 1.0) -> None:
    """The result files of one run on ten images, one of each class: an epoch of 3 s and one of 5 s."""
    run.folder.mkdir(parents=True)
    frame = pd.DataFrame({"index": range(10), "label": range(10), "prediction": predictions, "broken_by": broken_by})
    frame.to_csv(run.folder / "autoattack.csv", index=False)
    standing, after = 10 - broken_by.count("clean"), {}
    summary = {"clean": standing / 10, "n": 10, "weights": "w", "device": "a machine"}
    for attack in ATTACKS:
        standing -= broken_by.count(attack)
        after[attack] = standing / 10
    summary |= {"after": after, "robust": standing / 10, "seconds": dict.fromkeys(ATTACKS, 1.5)}
    summary |= {"made_of": folder.present(run, "evaluate")}
    files = {"autoattack.csv": checksum(run.folder / "autoattack.csv")}
    write_json(run.folder / "autoattack.json", summary | {"files": files})
    (run.folder / "history.csv").write_text(f"epoch,steps,seconds\n0,{steps},3\n1,{steps},5\n")
    record = {
        "made_of": folder.present(run, "train"),
        "files": {"model.safetensors": "w", "history.csv": checksum(run.folder / "history.csv")},
        "config": {"attack": {"steps": 2}},
        "device": "a machine",
        "peak_memory_mb": {"main": 700.0},
    }
    write_json(run.folder / "run.json", record)


class Project:
    """A copy of the project with one study, ``config/<name>.yaml``, in a folder of its own."""

    def __init__(self, folder: Path, study: dict, name: str = "study") -> None:
        self.folder, self.name = folder, name
        for part in PARTS:
            shutil.copytree(REPOSITORY / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        self.study(name).write_text(yaml.safe_dump(study), encoding="utf-8")
        self.results = folder / "results" / name

    def study(self, name: str) -> Path:
        """The file of a study of this project."""
        return self.folder / f"config/{name}.yaml"

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen:
        """Snakemake in the background; what it says goes to ``said``. The study is the project's, unless one is named.

        Processes of this folder import the ``sat_core`` of this folder, as they do for whoever works in it.
        """
        named = () if "--configfile" in arguments else ("--configfile", f"config/{self.name}.yaml")
        environment = environment or dict(os.environ)
        path = os.pathsep.join([str(SNAKEMAKE.parent), environment["PATH"]])
        with (self.folder / "said").open("wb") as said:
            return subprocess.Popen(
                [SNAKEMAKE, *arguments, *named],
                cwd=self.folder,
                env=environment | {"PATH": path, "PYTHONPATH": str(self.folder)},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text(errors="replace")

    def snakemake(
        self, *arguments: str, environment: dict[str, str] | None = None, status: int = 0, within: int | None = 300
    ) -> str:
        """What Snakemake says; fails unless it ends with ``status``, and within so many seconds."""
        process = self.start(*arguments, environment=environment)
        try:
            assert process.wait(within) == status, self.said
        finally:
            process.kill()
        return self.said

    def python(self, *arguments: str, status: int = 0, within: int | None = 300) -> str:
        """What ``python`` prints in this folder; fails unless it ends with ``status``, and within so many seconds."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=within,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout


def jobs(said: str) -> dict[str, int]:
    """Rule -> number of jobs, from the statistics that a dry run prints."""
    if "Nothing to be done" in said:
        return {}
    lines = said.partition("Job stats:")[2].splitlines()[3:]
    rows = [line.split() for line in lines[: next(i for i, line in enumerate(lines) if not line.strip())]]
    return {row[0]: int(row[1]) for row in rows if row[0] not in ("total", "all")}


def folder_of_images(folder: Path, images: np.ndarray, labels: Sequence[int] | None = None, classes: int = 4) -> None:
    """Write images uint8 (N, H, W, 3) as class folders, in turn if no labels are given; for training and for test."""
    for part in ("train", "test"):
        for label in range(classes):
            (folder / part / f"class{label}").mkdir(parents=True)
        for i, pixels in enumerate(images):
            label = i % classes if labels is None else labels[i]
            Image.fromarray(pixels).save(folder / part / f"class{label}" / f"{i:03}.png")
