"""Kill training, evaluation, figures and report at random moments, and compare with runs left in peace: `make soak`.

Every worker is forked from this process, which has torch loaded already, so that the kills fall into the work itself
and not into Python's start. Then, where a private SLURM can be started, the same in an allocation that all runs share.
Prints kills, resumes and mismatches; exits 1 if there is a mismatch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
import yaml

from sat_core.__main__ import main as command
from sat_core.runs.evaluate import evaluate
from sat_core.runs.train import train
from sat_core.study import Study, defense_names

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # results are compared bit for bit, which is promised for the processor

STUDY = {
    "tables": {
        "soak": {
            "dataset": "digits",
            "models": ["cnn"],
            "defenses": ["cat", "hsat", "psat", "dynamic", "trades", "awp", "ema", "swa"],
            "epsilons": [0.3],
        }
    },
    "variants": {name: {"defense": "madry"} for name in ("awp", "ema", "swa")},
    "overrides": [
        {"set": {"training": {"epochs": 6, "milestones": [4]}, "evaluation": {"images": 24, "batch_size": 6}}},
        {"set": {"resources": {"checkpoint_minutes": 0.005}}},
        {"where": {"defense": "dynamic"}, "set": {"options": {"horizon": 4}}},
        {
            "where": {"defense": ["psat", "hsat"]},
            "set": {"options": {"curriculum": {"kind": "linear", "epochs": [0, 5]}}},
        },
        {"where": {"defense": "awp"}, "set": {"training": {"awp": {"gamma": 0.01, "warm_up": 2}, "clip": 1.0}}},
        {
            "where": {"defense": "ema"},
            "set": {"training": {"average": "ema", "schedule": "cosine", "milestones": [], "warm_up": 1}},
        },
        {
            "where": {"defense": "swa"},
            "set": {"training": {"average": "swa", "average_from": 0.5}, "evaluation": {"weights": ["best", "last"]}},
        },
    ],
}


def work(address: str | None, log: Path) -> None:
    """What a job does, with its output appended to a log: train, then evaluate; without a run, the report."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        verbs = [["report"]] if address is None else [[verb, "--run", address] for verb in ("train", "evaluate")]
        for verb in verbs:
            if status := command([*verb, "--study", "soak.yaml"]):
                sys.exit(status)


def killed_until_done(address: str | None, log: Path, seconds: float, moments: random.Random) -> int:
    """Start the work and kill it, again and again, until it ends by itself; how often that was."""
    kills = 0
    while True:
        worker = multiprocessing.get_context("fork").Process(target=work, args=(address, log))
        worker.start()
        worker.join(moments.uniform(0.05, 0.4 * seconds))
        if not worker.is_alive():
            if worker.exitcode:
                raise SystemExit(f"{address or 'report'}: status {worker.exitcode}\n{log.read_text()[-2000:]}")
            return kills
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        kills += 1
        seconds *= 1.05  # what starts anew, as the report does, must get through in the end


def outcome(run) -> tuple:
    """What must be the same bit for bit: weights, history without its seconds, verdicts."""
    history = [line.rpartition(",")[0] for line in (run.folder / "history.csv").read_text().splitlines()]
    return (run.folder / "model.safetensors").read_bytes(), history, (run.folder / "autoattack.csv").read_bytes()


def told(where: str, same: bool) -> bool:
    """Say whether a result is what it is in peace; returns whether it is not."""
    print(f"{where} so far, {'equal' if same else 'DIFFERENT'}", flush=True)
    return not same


def pictures() -> dict[str, bytes]:
    """What the report is made of and depends on no clock, by name; fails over anything half-written."""
    here = Path("results/soak")
    assert not [*here.rglob(".*.tmp")], "litter"
    products = [here / "tables/soak.md", *here.glob("figures/*.png")]
    return {path.name: path.read_bytes() for path in products}


def in_an_allocation(kills: int, peaceful: dict[str, tuple], moments: random.Random) -> int:
    """All runs in one SLURM allocation, its processes killed so often; the number of runs that differ."""
    from helpers import Project
    from slurm.cluster import QUICK, Cluster, missing, wait_until

    if reason := missing():
        print(f"no kills within allocations: {reason}")
        return 0
    everyone = {"set": {"resources": {"runs_per_gpu": 8}}}
    project = Project(Path("group").absolute(), {**STUDY, "overrides": [*STUDY["overrides"], everyone]}, "soak")
    Path("slurm").mkdir()
    with Cluster(Path("slurm").absolute()) as cluster:
        snakemake = project.start(*QUICK, "--restart-times", "99", environment=cluster.environment)

        def busy() -> list[psutil.Process]:
            words = ("sat_core", "--run")
            alive = (process for process in psutil.process_iter(["cmdline", "cwd"]) if process.info["cmdline"])
            return [
                process
                for process in alive
                if process.info["cwd"] == str(project.folder) and all(word in process.info["cmdline"] for word in words)
            ]

        for _ in range(kills):
            wait_until(lambda: busy() or snakemake.poll() is not None, 120, "a process to kill")
            time.sleep(moments.uniform(0.5, 6))
            if found := busy():
                moments.choice(found).kill()
        assert snakemake.wait(900) == 0, project.said[-3000:]
    os.chdir(project.folder)
    different = [run for run in Study("config/soak.yaml").runs if outcome(run) != peaceful[run.defense]]
    print(f"in an allocation: {kills} kills, {len(different)} mismatches")
    return len(different)


def main() -> int:
    """Run the soak; the arguments are the number of kills asked for and the seed of their moments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    kills = resumes = rounds = mismatches = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("soak.yaml").write_text(yaml.safe_dump(STUDY))
        runs = Study("soak.yaml").runs
        peaceful, seconds = {}, {}
        for run in runs:
            began = time.perf_counter()
            train(run)
            evaluate(run)
            peaceful[run.defense], seconds[run.defense] = outcome(run), time.perf_counter() - began
        began = time.perf_counter()
        assert command(["report", "--study", "soak.yaml"]) == 0
        report_seconds, shown = time.perf_counter() - began, pictures()
        while kills < options.kills:
            rounds += 1
            Path("results").rename(f"results-{rounds}")
            for run in runs:
                log = Path(f"{run.defense}-{rounds}.log")
                kills += killed_until_done(run.id.path, log, seconds[run.defense], moments)
                resumes += log.read_text().count("resuming from")
                same = outcome(run) == peaceful[run.defense]
                mismatches += not same
                print(
                    f"round {rounds}, {run.defense}: {kills} kills so far, {'equal' if same else 'DIFFERENT'}",
                    flush=True,
                )
            kills += killed_until_done(None, Path(f"report-{rounds}.log"), report_seconds, moments)
            same = pictures() == shown
            mismatches += not same
            print(f"round {rounds}, report: {kills} kills so far, {'equal' if same else 'DIFFERENT'}", flush=True)
        mismatches += in_an_allocation(options.kills // 10, peaceful, moments)
        os.chdir("/")
    print(f"{kills} kills, {resumes} resumes from a checkpoint, {rounds * len(runs)} runs, {mismatches} mismatches")
    return int(mismatches > 0)


if __name__ == "__main__":
    assert set(STUDY["tables"]["soak"]["defenses"]) <= defense_names() | set(STUDY["variants"])
    torch.set_num_threads(1)
    sys.exit(main())
