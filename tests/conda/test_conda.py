"""Snakemake's real `--sdm conda` on a channel made here; what a solve against conda-forge gives is not tried."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from helpers import REPOSITORY, Project

TARGET = "results/study/data/digits.json"
PYTHON = f'#!/bin/sh\nprefix=$(dirname "$0")/..\nPYTHONPATH=$prefix/site exec {sys.executable} "$@"\n'


def package(folder: Path, name: str, version: str, files: dict[str, str]) -> tuple[str, dict]:
    """Write a conda package of executable text files; returns its file name and its entry in repodata.json."""
    index = {"name": name, "version": version, "build": "0", "build_number": 0, "depends": [], "subdir": "linux-64"}
    paths = [
        {
            "_path": path,
            "path_type": "hardlink",
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "size_in_bytes": len(text),
        }
        for path, text in files.items()
    ]
    inside = {"info/index.json": json.dumps(index), "info/paths.json": json.dumps({"paths": paths, "paths_version": 1})}
    file = folder / f"{name}-{version}-0.tar.bz2"
    with tarfile.open(file, "w:bz2") as tar:
        for path, text in (inside | files).items():
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(text.encode()), 0o755
            tar.addfile(info, io.BytesIO(text.encode()))
    content = file.read_bytes()
    digests = {"sha256": hashlib.sha256(content).hexdigest(), "md5": hashlib.md5(content).hexdigest()}
    return file.name, index | digests | {"size": len(content)}


@pytest.fixture
def project(tmp_path, tiny_study):
    """A project whose environment file names a channel of two packages, python and pip, at the committed versions."""
    here = Project(tmp_path / "project", tiny_study).folder
    channel = tmp_path / "channel/linux-64"
    for folder in (channel, channel.parent / "noarch", tmp_path / "conda/bin"):
        folder.mkdir(parents=True)
    environment = yaml.safe_load((REPOSITORY / "envs/sat-core.yaml").read_text())
    python, pip = (pin.split("=") for pin in environment["dependencies"][:2])
    packages = dict([package(channel, *python, {"bin/python": PYTHON}), package(channel, *pip, {"share/pip": "\n"})])
    for folder, found in ((channel, packages), (channel.parent / "noarch", {})):
        (folder / "repodata.json").write_text(json.dumps({"info": {"subdir": folder.name}, "packages": found}))
    environment["channels"] = [channel.parent.as_uri()]
    environment["dependencies"][2]["pip"] = ["colorama==0.4.6"]
    (here / "envs/sat-core.yaml").write_text(yaml.safe_dump(environment))
    uv = shutil.which("uv") or str(REPOSITORY / ".tools/bin/uv")
    shim = (Path(__file__).parent / "conda").read_text().replace("{python}", sys.executable).replace("{uv}", uv)
    (tmp_path / "conda/bin/conda").write_text(shim)
    (tmp_path / "conda/bin/conda").chmod(0o755)
    (tmp_path / "conda/bin/activate").write_text('export PATH="$1/bin:$PATH"\n')
    return here


def snakemake(here: Path, status: int) -> str:
    path = os.pathsep.join([str(here.parent / "conda/bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        [Path(sys.executable).with_name("snakemake"), TARGET, "--configfile", "config/study.yaml", "--sdm", "conda"],
        cwd=here, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    output = result.stdout + result.stderr
    assert result.returncode == status, output
    return output


def test_a_rule_runs_in_the_environment_that_conda_builds(project):
    assert "Activating conda environment" in snakemake(project, 0)
    (built,) = (path for path in (project / ".snakemake/conda").iterdir() if path.is_dir())
    assert (built / "bin/python").read_text() == PYTHON and (built / "site/colorama/__init__.py").exists()
    assert (project / TARGET).exists()


@pytest.mark.parametrize(
    "right, wrong, reason",
    [
        ("python=3", "python=2", "No candidates were found for python 2"),
        ("colorama==0.4.6", "colorama==99.9", "there is no version of colorama==99.9"),
    ],
)
def test_a_version_that_cannot_be_had_stops_the_run(project, right, wrong, reason):
    file = project / "envs/sat-core.yaml"
    file.write_text(file.read_text().replace(right, wrong))
    output = " ".join(snakemake(project, 1).split())
    assert "Could not create conda environment" in output and reason in output
    assert not (project / TARGET).exists()
