"""Snakemake killed outright, in the middle of a training."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from helpers import PSAT, TINY, Project

from sat_core.runs.train import train
from sat_core.study import Study


@pytest.mark.slow
def test_snakemake_killed_outright_recovers_as_documented(tmp_path, monkeypatch):
    study = TINY | {"tables": {"digits": TINY["tables"]["digits"] | {"defenses": ["psat"]}}}
    study["overrides"] = [
        *TINY["overrides"],
        {"set": {"training": {"epochs": 20, "milestones": []}, "resources": {"checkpoint_minutes": 0.001}}},
    ]
    project = Project(tmp_path / "project", study)
    run = project.results / "runs" / PSAT
    started = project.start()
    deadline = time.monotonic() + 120
    while not (run / "checkpoint.previous.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    for process in training(project.folder):  # as documented, with pkill
        process.kill()
    assert not (run / "run.json").exists()
    project.snakemake("--unlock")
    project.snakemake()
    assert "resuming from" in (project.results / "logs/train" / f"{PSAT}.log").read_text()
    assert pd.read_csv(run / "history.csv")["epoch"].tolist() == list(range(20))
    (tmp_path / "fresh").mkdir()
    monkeypatch.chdir(tmp_path / "fresh")
    fresh = Study(project.study("study")).run(PSAT)
    train(fresh)
    assert (fresh.folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def training(folder: Path) -> list[psutil.Process]:
    """The trainings that are at work in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder) and {"sat_core", "train"} <= set(process.cmdline()):
                found.append(process)
    return found
