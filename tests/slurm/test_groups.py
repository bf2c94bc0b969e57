"""Several runs in one allocation: what one of them does is its own affair."""

from slurm.cluster import QUICK

KEPT = ("run.json", "model.safetensors", "autoattack.json", "autoattack.csv")


def finished(project) -> dict[str, tuple[int, int, bytes]]:
    """File -> inode, time and content of what stands in the runs' folders, not of the second names in ``.kept``."""
    runs = project.results / "runs"
    found = {path for name in KEPT for path in runs.rglob(name) if path.parent.name != ".kept"}
    return {
        str(path.relative_to(runs)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in found
    }


def test_a_run_that_diverges_costs_no_other_run_of_its_allocation(cluster, project, tiny_study):
    tiny_study["tables"]["digits"]["defenses"] += ["standard", "trades"]
    diverging = {"where": {"defense": "madry"}, "set": {"training": {"lr": 1e12}}}
    tiny_study["overrides"] += [{"set": {"resources": {"runs_per_gpu": 4}}}, diverging]
    it = project(tiny_study)
    before = len(cluster("squeue", "--states=all", "--noheader").splitlines())
    retries = (*QUICK, "--restart-times", "2")

    said = it.snakemake(*retries, environment=cluster.environment, status=1)

    first = finished(it)
    assert len(first) == 3 * len(KEPT), said
    assert not any("madry" in name for name in first)
    assert len(cluster("squeue", "--states=all", "--noheader").splitlines()) == before + 1  # one allocation, once
    table = (it.results / "tables/digits.md").read_text().splitlines()
    (blank,) = (line for line in table if line.startswith("| Madry"))
    assert blank.split("|")[2].strip() == "—"
    assert all("—" not in line for line in table if line.startswith(("| P-SAT", "| Standard", "| Zhang")))

    again = it.snakemake(*retries, environment=cluster.environment, status=1)
    assert finished(it) == first, again  # the same files, not equal ones
    log = (it.results / "logs/train/digits/cnn/madry/eps0.3/seed0.log").read_text()
    assert "training diverged" in log and "found before" in log and log.count("error:") == 1

    it.study(it.name).write_text(it.study(it.name).read_text().replace("1000000000000.0", "0.05"))
    it.snakemake(*retries, environment=cluster.environment)
    whole = finished(it)
    assert len(whole) == 4 * len(KEPT) and first.items() <= whole.items()


def test_what_a_group_asks_for_stays_within_the_partition(cluster, project, tiny_study):
    many = {"resources": {"runs_per_gpu": 2, "train_minutes": 40, "evaluate_minutes": 40, "mem_mb": 12000}}
    tiny_study["overrides"].append({"set": many})
    it = project(tiny_study)
    site = ("--config", "gres=gpu:1", "max_minutes=30", "max_mem_mb=8000")
    it.snakemake(*QUICK, *site, "--until", "evaluate", environment=cluster.environment)
    (last,) = cluster("squeue", "--states=all", "--noheader", "--sort=-i", "--format=%l|%m|%T").splitlines()[:1]
    limit, memory, state = last.split("|")
    assert state == "COMPLETED" and int(limit.split(":")[0]) <= 30 and int(memory.removesuffix("M")) <= 8000


def test_where_a_site_forbids_mem_or_counts_no_gpus_none_is_asked_for(cluster, project, tiny_study):
    tiny_study["tables"]["digits"]["defenses"] = ["madry"]
    it = project({**tiny_study, "overrides": tiny_study["overrides"][:1]})
    site = ("--config", "gres=", "max_mem_mb=0")
    it.snakemake(*QUICK, *site, "--until", "train", environment=cluster.environment)
    (last,) = cluster("squeue", "--states=all", "--noheader", "--sort=-i", "--format=%b|%m|%T").splitlines()[:1]
    assert last.split("|") == ["N/A", "0", "COMPLETED"]
