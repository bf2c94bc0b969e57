"""What clusters do to jobs, done on purpose: each time the study completes, and training goes on where it was."""

import csv
import os
import re
import signal
from pathlib import Path

import pytest
from slurm.cluster import QUICK, wait_until

pytestmark = pytest.mark.slow
EPOCHS = 30


@pytest.fixture
def training(cluster, project):
    """A project whose only run trains for half a minute or more, started on the cluster; cut short by the test."""
    started = []

    def start(*arguments: str, steps: int = 40, **resources: int):
        settings = {
            "training": {"epochs": EPOCHS, "milestones": [EPOCHS - 1]},
            "attack": {"steps": steps},
            "evaluation": {"images": 2},
            "resources": {"runs_per_gpu": 1, "mem_mb": 2000, "train_minutes": 30, "checkpoint_minutes": 0.001}
            | resources,
        }
        table = {"dataset": "digits", "models": ["cnn"], "defenses": ["madry"], "epsilons": [0.3]}
        here = project({"tables": {"digits": table}, "overrides": [{"set": settings}]})
        started.append(here.start(*QUICK, *arguments, environment=cluster.environment))
        return here, started[-1]

    yield start
    for process in started:
        process.kill()


def log(here) -> str:
    path = here.results / "logs/train/digits/cnn/madry/eps0.3/seed0.log"
    return path.read_text() if path.exists() else ""


def epochs(here) -> list[int]:
    """The epochs that the present attempt has finished."""
    return [int(epoch) for epoch in re.findall(r" epoch (\d+)/", log(here))]


def under_way(here) -> int:
    """Wait until three epochs are done; returns the last one."""
    wait_until(lambda: len(epochs(here)) >= 3, 120, "three epochs")
    return epochs(here)[-1]


def completes(here, process, done: int) -> None:
    """The study ends well, and the last attempt began after epoch ``done``: nothing is lost but the current epoch."""
    assert process.wait(600) == 0, here.said
    assert "resuming from" in log(here)
    assert epochs(here)[0] > done and epochs(here)[-1] == EPOCHS
    history = (here.results / "runs/digits/cnn/madry/eps0.3/seed0/history.csv").read_text().splitlines()
    assert [int(row["epoch"]) for row in csv.DictReader(history)] == list(range(EPOCHS))
    assert (here.results / "tables/digits.md").exists()


def job(cluster) -> str:
    """The id of the one job that is running."""
    return cluster("squeue", "--noheader", "--format=%i", "--states=RUNNING", "--partition=main")


def python(here) -> int:
    """The process id of the training."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if b"sat_core\0train" in (place / "cmdline").read_bytes() and (place / "cwd").resolve() == here.folder:
                return int(place.name)
        except OSError:
            continue
    raise LookupError("no training is running")


def test_a_killed_process(training):
    here, process = training()
    done = under_way(here)
    os.kill(python(here), signal.SIGKILL)
    completes(here, process, done)


def test_a_cancelled_job(cluster, training):
    here, process = training()
    done = under_way(here)
    cluster("scancel", job(cluster))
    completes(here, process, done)


def test_a_time_limit(cluster, training):
    here, process = training("--set-resources", "train:slurm_extra='--open-mode=append'", steps=120)
    done = under_way(here)
    cluster("scontrol", "update", f"JobId={job(cluster)}", "TimeLimit=1")
    completes(here, process, done)
    assert "TIMEOUT" in cluster("squeue", "--states=all", "--noheader", "--format=%T")


def test_the_warning_before_the_time_limit_reaches_the_training_and_nothing_else_dies_of_it(cluster, training):
    here, process = training()
    done = under_way(here)
    cluster("scancel", "--signal=USR1", job(cluster))
    assert process.wait(600) == 0, here.said
    assert epochs(here)[-1] == EPOCHS and (epochs(here)[0] == 1 or epochs(here)[0] > done)


def test_too_little_memory(cluster, training):
    here, process = training(mem_mb=500)
    assert process.wait(600) == 0, here.said
    assert "Trying to restart" in here.said and epochs(here)[-1] == EPOCHS
    asked = cluster("squeue", "--states=all", "--noheader", "--format=%m|%T").splitlines()
    assert any(line.startswith("500M") and not line.endswith("COMPLETED") for line in asked)
    assert "1000M|COMPLETED" in asked


def test_preemption_puts_the_job_back_into_the_queue(cluster, training):
    here, process = training()
    done, preempted = under_way(here), job(cluster)
    cluster("sbatch", "--partition=urgent", "--gres=gpu:2", "--mem=1000", "--output=/dev/null", "--wrap=sleep 5")
    completes(here, process, done)
    assert "Restarts=1" in cluster("scontrol", "show", "job", preempted)


def test_a_node_that_goes_down_and_comes_back(cluster, training):
    here, process = training()
    done = under_way(here)
    cluster("scontrol", "update", "NodeName=node", "State=DOWN", "Reason=test")
    wait_until(lambda: "down" in cluster.node_state(), 20, "the node to be down")
    cluster("scontrol", "update", "NodeName=node", "State=RESUME")
    completes(here, process, done)
