"""`status` on a real SLURM: what waits in the queue, alone or with others in an allocation."""

import re
import signal

from slurm.cluster import QUICK, wait_until


def test_queued_runs_are_said_to_be_with_their_job(cluster, project, tiny_study, monkeypatch):
    tiny_study["tables"]["digits"]["seeds"] = [0, 1]
    alone = {"where": {"defense": "madry"}, "set": {"resources": {"runs_per_gpu": 1}}}
    tiny_study["overrides"] += [{"set": {"resources": {"runs_per_gpu": 2}}}, alone]
    it = project(tiny_study)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment[name])
    cluster("scontrol", "update", "partition=main", "state=down")
    snakemake = it.start(*QUICK, environment=cluster.environment)
    try:
        wait_until(lambda: len(cluster("squeue", "--noheader").splitlines()) == 3, 60, "three jobs in the queue")
        said = it.python("-m", "sat_core", "status", "--study", "config/study.yaml", status=1)
        found = dict(re.findall(r"^(\w+/eps0.3/seed\d) +queued +SLURM (\d+): PartitionDown", said, re.MULTILINE))
        assert len(found) == 4, said
        assert found["psat/eps0.3/seed0"] == found["psat/eps0.3/seed1"]  # one allocation
        assert len(set(found.values())) == 3
        other = it.study("other")
        other.write_text(it.study("study").read_text())
        assert "4 waiting" in it.python("-m", "sat_core", "status", "--study", "config/other.yaml", status=1)
    finally:
        snakemake.send_signal(signal.SIGINT)
        cluster("scontrol", "update", "partition=main", "state=up")
        snakemake.wait(300)  # for as long as the plugin sleeps between two looks at the queue
