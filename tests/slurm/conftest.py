"""A real cluster for a whole test session, copies of the project, and Snakemake on both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cluster import Cluster, missing

REPOSITORY = Path(__file__).resolve().parents[2]
PARTS = ("sat_core", "workflow", "config", "profiles", "slurm", "envs")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """One node with 8 processors and two GPUs, as far as SLURM is concerned."""
    if reason := missing():
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture
def accounting_cluster(tmp_path):
    """Another one, which keeps accounts."""
    if reason := missing(accounting=True):
        pytest.skip(reason)
    with Cluster(tmp_path, accounting=True) as started:
        yield started


class Project:
    """A copy of the project with one study, ``config/study.yaml``, in a folder of its own."""

    def __init__(self, folder: Path, study: dict) -> None:
        self.folder = folder
        for part in PARTS:
            shutil.copytree(REPOSITORY / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "config/study.yaml").write_text(yaml.safe_dump(study))
        self.results = folder / "results/study"

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen:
        """Snakemake in the background; what it says goes to ``said``. The study is config/study.yaml."""
        command = [Path(sys.executable).with_name("snakemake"), "--configfile", "config/study.yaml", *arguments]
        environment = environment or dict(os.environ)
        path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        with (self.folder / "said").open("wb") as said:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment | {"PATH": path}, stdout=said, stderr=subprocess.STDOUT
            )

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text(errors="replace")

    def snakemake(self, *arguments: str, environment: dict[str, str] | None = None, status: int = 0) -> str:
        """What Snakemake says; fails unless it ends with ``status``."""
        process = self.start(*arguments, environment=environment)
        try:
            assert process.wait(300) == status, self.said
        finally:
            process.kill()
        return self.said


@pytest.fixture
def project(tmp_path):
    """Make a :class:`Project` from a study."""
    return lambda study, name="project": Project(tmp_path / name, study)
