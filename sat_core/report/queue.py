"""What of a study waits in SLURM's queue. Asks SLURM itself; where there is none, nothing does."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from sat_core.study import Study


class Job(NamedTuple):
    """``state`` and ``reason`` as SLURM says them, such as PENDING and Resources."""

    id: str
    state: str
    reason: str


def queued(study: Study) -> dict[tuple[str, str], Job]:
    """(stage, run) -> the job of mine that is to do it, be it alone or one of several in an allocation."""
    if not shutil.which("squeue"):
        return {}
    found, here = {}, str(study.path.resolve())
    for line in asked("squeue", "--me", "--noheader", "--format=%i|%T|%r").splitlines():
        job = Job(*line.split("|", 2))
        words = script(job.id)
        if here in words:
            found.update(dict.fromkeys(targets(words), job))
    return found


@cache
def script(id: str) -> tuple[str, ...]:
    """The words of what a job runs: Snakemake's command line names the study and what is to be made."""
    with contextlib.suppress(ValueError):
        return tuple(shlex.split(asked("scontrol", "write", "batch_script", id, "-"), comments=True))
    return ()


def targets(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """``train:run=digits/cnn/psat/eps0.3/seed0`` -> the stage and the run."""
    for word in words:
        rule, _, wildcards = word.partition(":")
        for wildcard in wildcards.split(","):
            if wildcard.startswith("run="):
                yield rule.removesuffix("_shard"), wildcard.removeprefix("run=")


def asked(*command: str) -> str:
    """What a command of SLURM prints; nothing where it fails or is slow."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    return ""
