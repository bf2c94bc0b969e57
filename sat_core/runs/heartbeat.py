"""Signs of life: while a process works for a run, a small file in the run's folder says so, and how far it is.

``.<work>.beat.json`` is replaced every few seconds by a thread of that process, so that a single step, a compilation or
a validation of many minutes does not look like death. It is deleted when the work is done; what went wrong stays in it.
It belongs to no result, and a disk that is full or slow never stops the work. Needs no torch.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from sat_core.errors import ConfigError, Interrupted
from sat_core.runs import folder
from sat_core.runs.files import HOST, digest, make_folder
from sat_core.study import Run

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

PERIOD = 5.0
"""Seconds between two beats."""
LOST = 60.0
"""Seconds without a beat after which a process is taken for dead."""
LOG_EVERY = 60.0
"""Seconds between two log lines on what is being done, at least."""


@dataclass
class Beat:
    """What a process says of its work. ``share`` of it done, in [0, 1]; ``left``: seconds, as far as it can tell.

    ``began`` and ``at`` by the clock of its machine, in seconds since 1970; ``job``: SLURM's id of it. ``ended``: ""
    while it works, then ``failed`` or ``interrupted``, with what was ``said``. ``of``: a hash of what the result is of.
    """

    work: str
    of: str
    doing: str = "starting"
    share: float = 0.0
    left: float | None = None
    ended: str = ""
    said: str = ""
    host: str = HOST
    process: int = field(default_factory=os.getpid)
    job: str = field(default_factory=lambda: os.environ.get("SLURM_JOB_ID", ""))
    began: float = field(default_factory=time.time)
    at: float = 0.0


ANEW = "begins anew: what had begun is of other settings, code or images"


class Heart:
    """The beats of one process at work in a run's folder; see :func:`beating`."""

    def __init__(self, path: Path, beat: Beat) -> None:
        self.path, self.beat = path, beat
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.beat_on, name="heartbeat", daemon=True)
        self.logged = time.monotonic()

    def tell(self, doing: str, share: float = 0.0, left: float | None = None) -> None:
        """Say what is being done; costs next to nothing. Logged, too, where nothing has been for a minute."""
        self.beat.doing, self.beat.share, self.beat.left = doing, share, left
        if time.monotonic() - self.logged > LOG_EVERY:
            self.logged = time.monotonic()
            log.info("%s%s", doing, "" if left is None else f", about {duration(left)} left")

    def beat_on(self) -> None:
        """Until :attr:`stop` is set."""
        while not self.stop.wait(PERIOD):
            self.write()

    def write(self) -> None:
        """One beat. Without fsync: only that it comes counts."""
        beside = self.path.with_suffix(".tmp")  # always the same, so that one who is killed leaves no litter
        self.beat.at = time.time()
        with contextlib.suppress(OSError):
            beside.write_text(json.dumps(asdict(self.beat)), encoding="utf-8")
            beside.replace(self.path)


@contextlib.contextmanager
def beating(run: Run, stage: str, work: str | None = None) -> Iterator[Heart]:
    """Tell whoever watches that this process works on a stage of ``run``, or on that part of it called ``work``.

    Raises ConfigError where nothing can be written into the run's folder.
    """
    make_folder(run.folder)
    work = work or stage
    heart = Heart(run.folder / f".{work}.beat.json", Beat(work, hash_of(run, stage)))
    heart.write()
    heart.thread.start()
    beat = heart.beat
    try:
        yield heart
    except BaseException as error:
        stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
        said = str(error).strip() or type(error).__name__
        beat.ended, beat.said = ("interrupted" if stopped else "failed"), said.splitlines()[0]
        raise
    finally:
        heart.stop.set()
        heart.thread.join()
        if beat.ended:
            heart.write()
        else:
            with contextlib.suppress(OSError):
                heart.path.unlink()


def hash_of(run: Run, stage: str) -> str:
    """A hash of the settings, code, images and weights that a stage's result would be made of now."""
    made = folder.present(run, stage)
    if stage != "train":
        with contextlib.suppress(ConfigError):
            made |= {"weights": folder.weights(run)}
    return digest(made)[:16]


def beats(run: Run, now: float) -> list[tuple[Beat, float]]:
    """Every beat in a run's folder and its age in seconds, at the time ``now`` of the file system.

    One that comes from the future is of before that clock was set back, and so old, too.
    """
    found = []
    for path in sorted(run.folder.glob(".*.beat.json")):
        with contextlib.suppress(OSError, ValueError, TypeError), path.open(encoding="utf-8") as file:
            # Opened before it is asked for its time: only so does a shared file system say the latest.
            found.append((Beat(**json.load(file)), abs(now - os.fstat(file.fileno()).st_mtime)))
    return found


def is_lost(beat: Beat, age: float) -> bool:
    """Whether the process behind a beat must be dead: silent for long or, on this machine, not there any more."""
    gone = beat.host == HOST and age > 2 * PERIOD and not psutil.pid_exists(beat.process)
    return not beat.ended and (gone or age > LOST)


def is_alive(beat: Beat, age: float) -> bool:
    """Whether the process behind a beat is at work."""
    return not beat.ended and not is_lost(beat, age)


def file_system_time(place: Path) -> float:
    """What time it is for the file system of a folder: that of the files' own times, whatever the machines' clocks say.

    By a file that is touched there; where that may not be, this machine's time.
    """
    probe = place / f".clock.{HOST}.{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def unfinished_history(run: Run) -> pd.DataFrame:
    """The epochs so far of a training that is not complete, of the present settings and code; empty if there are none.

    The training may be running, or have stopped. Columns as in ``history.csv``.
    """
    import pandas as pd

    if in_training(run):
        with contextlib.suppress(OSError, ValueError):
            return pd.read_csv(run.folder / folder.HISTORY)
    return pd.DataFrame()


def epochs_done(run: Run) -> int:
    """How many epochs an unfinished training of the present settings and code has on record."""
    try:
        with (run.folder / folder.HISTORY).open(newline="") as file:
            return sum(1 for _ in csv.DictReader(file)) if in_training(run) else 0
    except OSError:
        return 0


def in_training(run: Run) -> bool:
    """Whether what is in the run's folder is of a training that has begun, not ended, and is the present one."""
    if (run.folder / folder.STAGES["train"].record).exists():
        return False
    return any(beat.work == "train" and beat.of == hash_of(run, "train") for beat, _ in beats(run, 0.0))


def began_otherwise(run: Run) -> bool:
    """Whether a training has begun and not ended with which nobody will go on: of other settings, code or images."""
    if not (run.folder / folder.CHECKPOINT).exists() or (run.folder / folder.STAGES["train"].record).exists():
        return False
    begun = [beat.of for beat, _ in beats(run, 0.0) if beat.work == "train"]
    return bool(begun) and hash_of(run, "train") not in begun


def duration(seconds: float) -> str:
    """In the unit that fits: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    for unit, name, digits in ((86_400, "days", 1), (3_600, "h", 1), (60, "min", 0)):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds:.0f} s"
