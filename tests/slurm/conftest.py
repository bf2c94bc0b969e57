"""A real cluster for a whole test session, and copies of the project to run on it."""

from __future__ import annotations

import pytest
from helpers import Project
from slurm.cluster import Cluster, missing


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


@pytest.fixture
def project(tmp_path):
    """Make a :class:`Project` from a study."""
    return lambda study, name="project": Project(tmp_path / name, study)
