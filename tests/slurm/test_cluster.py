"""`snakemake --profile slurm` on a real SLURM gives what plain `snakemake` gives."""

import csv
import shutil

import yaml
from slurm.cluster import QUICK, wait_until

from sat_core.runs.folder import KEPT


def test_a_study_on_the_cluster_equals_the_local_one_file_by_file(cluster, project, tiny_study):
    study = tiny_study
    study["tables"]["digits"]["defenses"].append("standard")
    alone = {"where": {"defense": "standard"}, "set": {"resources": {"runs_per_gpu": 1}}}
    study["overrides"] += [{"set": {"resources": {"runs_per_gpu": 2}}}, alone]
    local, remote = project(study, "local"), project(study, "remote")
    local.snakemake()
    remote.snakemake(*QUICK, environment=cluster.environment)

    ours, theirs = files(remote.results), files(local.results)
    assert len(ours) == 3 * 3 + 4 and ours == theirs

    held = cluster("squeue", "--states=all", "--noheader", "--format=%k|%b|%C|%T").splitlines()
    shared = [line for line in held if line.startswith("rule_share2")]
    assert [line.split("|")[1:] for line in shared] == [["gres:gpu:1", "2", "COMPLETED"]]
    assert sorted(line.split("_wildcards")[0].split("|")[0] for line in held if line not in shared) == [
        "rule_evaluate",
        "rule_train",
    ]


def test_a_rehearsal_keeps_what_the_profile_says_of_the_site(cluster, project, tiny_study):
    """Snakemake forgets a profile's `config` where there is a `--config`."""
    here = project(tiny_study, "rehearsed")
    here.snakemake(*QUICK, "--config", "rehearse=true", environment=cluster.environment)
    results = here.folder / "results/study-rehearsal"
    assert (results / "report.html").exists() and len(list(results.glob("runs/**/measured.json"))) == 2
    held = [line.split("|") for line in cluster("squeue", "--states=all", "--noheader", "--format=%Z|%b").splitlines()]
    assert {gres for place, gres in held if place == str(here.folder)} == {"gres:gpu:1"}


def files(results):
    """Name -> content of every result that must not depend on where it was made."""
    kept = {}
    for path in sorted(results.rglob("*")):
        if KEPT in path.parts:
            continue
        if path.name in ("model.safetensors", "autoattack.csv") or path.match("tables/digits.*"):
            kept[str(path.relative_to(results))] = path.read_bytes()
        elif path.name == "history.csv":
            rows = [row | {"seconds": ""} for row in csv.DictReader(path.read_text().splitlines())]
            kept[str(path.relative_to(results))] = rows
    return kept


def test_a_cluster_without_accounting_is_told_what_to_set(cluster, project, tiny_study):
    here = project(tiny_study)
    said = here.snakemake(*QUICK, "--slurm-status-command", "sacct", environment=cluster.environment, status=1)
    assert "set `slurm-status-command: squeue` in slurm/config.yaml" in said
    said = here.snakemake(*QUICK[:-1], "150", environment=cluster.environment, status=1)
    assert "set `slurm-init-seconds-before-status-checks` in slurm/config.yaml to 100 or less" in said
    assert "Traceback" not in said and not cluster("squeue", "--noheader")


def test_a_cluster_with_accounting_is_asked_with_sacct(accounting_cluster, project, tiny_study):
    here = project(tiny_study)
    limits = {"main": {"max_runtime": 1440, "max_mem_mb": 16000, "max_gpu": 2}, "urgent": {"max_gpu": 0}}
    (here.folder / "partitions.yaml").write_text(yaml.safe_dump({"partitions": limits}))
    options = ("--slurm-status-command", "sacct", "--slurm-partition-config", "partitions.yaml")
    options += ("--slurm-efficiency-report", "--slurm-efficiency-report-path", "efficiency")
    said = here.snakemake(*QUICK, *options, environment=accounting_cluster.environment)
    assert (here.results / "report.html").exists(), said
    (report,) = (here.folder / "efficiency").glob("*.csv")
    assert "CPU Efficiency (%)" in report.read_text()
    wait_until(lambda: "RUNNING" not in accounted(accounting_cluster), 30, "the accounts to be written")
    jobs = [line.split("|") for line in accounted(accounting_cluster).splitlines()]
    assert jobs and all(state == "COMPLETED" and "gres/gpu=1" in tres for _, state, tres in jobs), jobs


def accounted(cluster):
    """Job, state and what it held, of each job that the database knows."""
    return cluster("sacct", "--allocations", "--parsable2", "--noheader", "--format=JobID,State,AllocTRES")


def test_without_slurm_one_sentence_says_so(project, tiny_study, tmp_path):
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "sh", "which", "git", "env"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    said = project(tiny_study).snakemake(
        *QUICK, environment={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}, status=1
    )
    assert "sbatch is not on PATH" in said and "Traceback" not in said
