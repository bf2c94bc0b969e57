"""Fixtures: a small study in a folder of its own, which is also the working directory."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import yaml
from studies import TINY

from sat_core.study import Study

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # results are compared bit for bit, which is promised for the processor


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
