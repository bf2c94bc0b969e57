"""The paper's whole study in rehearsal, 84 cells, on a real SLURM."""

import pytest
from slurm.cluster import QUICK
from workflow.test_rehearsal import PAPER, check, rehearse


@pytest.mark.slow
def test_the_whole_paper_rehearses(cluster, tmp_path):
    study = {"extends": "paper.yaml"}
    project = rehearse(tmp_path / "project", study, 6 * 3600, *QUICK, environment=cluster.environment)
    check(project, PAPER["tables"])
