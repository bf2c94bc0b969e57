"""Fixtures: a small study in a folder of its own, which is also the working directory; and one that is finished."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import MADRY, PSAT, TINY

from sat_core.__main__ import main
from sat_core.study import Study

torch.set_num_threads(1)  # several workers share the processors; runs set what they need
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # results are compared bit for bit, which is promised for the processor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files whose tests take minutes first, that of the longest before all, so that no worker ends alone."""
    items.sort(key=lambda item: (item.path.parent.name != "workflow", item.path.name != "test_rehearsal.py"))


@pytest.fixture
def tiny_study() -> dict:
    """A study of two runs that takes seconds, to be changed at will."""
    return copy.deepcopy(TINY)


@pytest.fixture
def write_study(tmp_path, monkeypatch):
    """Write a study file from a dict into tmp_path, make that the working directory, and return the file's path."""
    monkeypatch.chdir(tmp_path)

    def write(content: object = TINY, name: str = "tiny") -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def tiny(write_study) -> Study:
    return Study(write_study())


def made_once(folder: Path, study: dict, *verbs: str, run: str) -> Path:
    """A folder with a study, of which one run has been through these verbs of the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("tiny.yaml").write_text(yaml.safe_dump(study))
        for verb in verbs:
            assert main([verb, "--study", "tiny.yaml", "--run", run]) == 0
    return folder


@pytest.fixture(scope="session")
def judged_once(tmp_path_factory) -> Path:
    study = copy.deepcopy(TINY)
    study["tables"]["digits"]["defenses"] = ["psat"]
    study["overrides"].append({"set": {"evaluation": {"images": 6, "batch_size": 2}}})
    return made_once(tmp_path_factory.mktemp("judged"), study, "train", "evaluate", run=PSAT)


@pytest.fixture
def judged(judged_once, tmp_path, monkeypatch) -> Study:
    """A study of P-SAT's run alone, trained and judged in three blocks of two images; a copy of one's own."""
    shutil.copytree(judged_once, tmp_path / "judged")
    monkeypatch.chdir(tmp_path / "judged")
    return Study("tiny.yaml")


@pytest.fixture(scope="session")
def measured_once(tmp_path_factory) -> Path:
    study = copy.deepcopy(TINY)
    study["tables"]["digits"] |= {"curvature": ["madry", "psat"], "landscapes": ["madry", "psat"]}
    settings = {"curvature": {"images": 40, "batch_size": 32}, "landscape": {"points": 5, "reattack": 3}}
    study["overrides"].append({"set": settings})
    return made_once(tmp_path_factory.mktemp("measured"), study, "train", "curvature", "landscape", run=MADRY)


@pytest.fixture
def measured(measured_once, tmp_path, monkeypatch) -> Study:
    """A study of which Madry's run is trained and measured, its curvature and its landscape; a copy of one's own."""
    shutil.copytree(measured_once, tmp_path / "measured")
    monkeypatch.chdir(tmp_path / "measured")
    return Study("tiny.yaml")
