"""What SLURM and Snakemake add to the jobs' own time: a small study on a private cluster, one job after the other.

Needs root, slurm-wlm and munge, as tests/slurm do. An allocation's overhead is its elapsed time less the time of what
ran in it, and the time from the end of the one before to its start, most of which is Snakemake's wait between two
looks at the queue.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers import Project  # noqa: E402
from slurm.cluster import Cluster, missing  # noqa: E402

INTERVAL = 5
STUDY = {
    "tables": {"t": {"dataset": "digits", "models": ["cnn"], "defenses": ["madry", "psat"], "epsilons": [0.2]}},
    "overrides": [
        {"set": {"training": {"epochs": 27}, "evaluation": {"images": 100}, "resources": {"runs_per_gpu": 1}}}
    ],
}


def main() -> None:
    """Print the table of the allocations."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    if reason := missing():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as name, Cluster(Path(name)) as cluster:
        project = Project(Path(name) / "project", STUDY)
        options = ["--profile", "slurm", "--sdm", "env-modules", "--jobs", "1"]
        options += ["--slurm-init-seconds-before-status-checks", str(INTERVAL)]
        began = time.time()
        project.snakemake(*options, environment=cluster.environment)
        wall = time.time() - began
        lines = cluster("squeue", "--states=all", "--noheader", "--format=%S|%e|%k").splitlines()
        own = [pd.read_csv(path, sep="\t")["s"].sum() for path in (project.results / "benchmarks").rglob("seed0.tsv")]
    rows = pd.DataFrame([line.split("|") for line in lines], columns=["start", "end", "rule"])
    rows[["start", "end"]] = rows[["start", "end"]].apply(pd.to_datetime)
    rows = rows.sort_values("start", ignore_index=True)
    elapsed = (rows["end"] - rows["start"]).dt.total_seconds()
    between = (rows["start"] - rows["end"].shift()).dt.total_seconds().dropna()
    jobs = sum(own)
    print(f"{len(rows)} allocations, {len(own)} jobs timed, status checked every {INTERVAL} s, wall {wall:.1f} s")
    print(f"elapsed in allocations {elapsed.sum():.0f} s, of it the jobs' own {jobs:.1f} s")
    print(f"overhead inside an allocation: {(elapsed.sum() - jobs) / len(rows):.1f} s")
    gaps = f"{between.mean():.1f} s ({between.min():.0f} to {between.max():.0f})"
    print(f"from the end of one to the start of the next: {gaps}")


if __name__ == "__main__":
    main()
