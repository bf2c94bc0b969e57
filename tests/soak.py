"""Kill training and evaluation at random moments, over and over, and compare with runs left in peace: `make soak`.

Every worker is forked from this process, which has torch loaded already, so that the kills fall into the work itself
and not into Python's start. Prints kills, resumes and mismatches; exits 1 if there is a mismatch.
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
            "defenses": ["cat", "hsat", "psat", "dynamic", "trades"],
            "epsilons": [0.3],
        }
    },
    "overrides": [
        {"set": {"training": {"epochs": 6, "milestones": [4]}, "evaluation": {"images": 24, "batch_size": 6}}},
        {"set": {"resources": {"checkpoint_minutes": 0.005}}},
        {"where": {"defense": "dynamic"}, "set": {"options": {"horizon": 4}}},
        {
            "where": {"defense": ["psat", "hsat"]},
            "set": {"options": {"curriculum": {"kind": "linear", "epochs": [0, 5]}}},
        },
    ],
}


def work(address: str, log: Path) -> None:
    """What a job does: train, then evaluate, with its output appended to a log."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 2)
        for verb in ("train", "evaluate"):
            if status := command([verb, "--study", "soak.yaml", "--run", address]):
                sys.exit(status)


def outcome(run) -> tuple:
    """What must be the same bit for bit: weights, history without its seconds, verdicts."""
    history = [line.rpartition(",")[0] for line in (run.folder / "history.csv").read_text().splitlines()]
    return (run.folder / "model.safetensors").read_bytes(), history, (run.folder / "autoattack.csv").read_bytes()


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
        while kills < options.kills:
            rounds += 1
            Path("results").rename(f"results-{rounds}")
            for run in runs:
                log = Path(f"{run.defense}-{rounds}.log")
                while True:
                    worker = multiprocessing.get_context("fork").Process(target=work, args=(run.id.path, log))
                    worker.start()
                    worker.join(moments.uniform(0.05, 0.4 * seconds[run.defense]))
                    if worker.is_alive():
                        os.kill(worker.pid, signal.SIGKILL)
                        worker.join()
                        kills += 1
                    elif worker.exitcode == 0:
                        break
                    else:
                        print(f"{run.id.path}: status {worker.exitcode}\n{log.read_text()[-2000:]}")
                        return 1
                resumes += log.read_text().count("resuming from")
                same = outcome(run) == peaceful[run.defense]
                mismatches += not same
                print(
                    f"round {rounds}, {run.defense}: {kills} kills so far, {'equal' if same else 'DIFFERENT'}",
                    flush=True,
                )
    print(f"{kills} kills, {resumes} resumes from a checkpoint, {rounds * len(runs)} runs, {mismatches} mismatches")
    return int(mismatches > 0)


if __name__ == "__main__":
    assert set(STUDY["tables"]["soak"]["defenses"]) <= defense_names()
    torch.set_num_threads(1)
    sys.exit(main())
