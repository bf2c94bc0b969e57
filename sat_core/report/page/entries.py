"""What is known of each run, and how it stands: complete, running, failed, out of date, accepted, from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sat_core.errors import ConfigError
from sat_core.report import numbers
from sat_core.report.render import MISSING, STALE, TRIVIAL
from sat_core.report.status import failure, last_words
from sat_core.runs import folder, heartbeat
from sat_core.runs.files import read_arrays
from sat_core.study import Run, Study


class Problem(NamedTuple):
    """What a run lacks: at which ``stage``, in a word or two (``state``), and in a sentence."""

    stage: str
    state: str
    sentence: str

    @property
    def sign(self) -> str:
        return {"out of date": STALE, "running": "▸", "unfinished": "▸", "not done": MISSING}.get(self.state, "✗")

    def __str__(self) -> str:
        return f"{self.stage}: {self.sentence}"


@dataclass
class Entry:
    """One run: its records, empty where there are none, and the arrays and tables beside them."""

    run: Run
    record: dict[str, Any] = field(default_factory=dict)
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    verdict: dict[str, Any] = field(default_factory=dict)
    images: pd.DataFrame = field(default_factory=pd.DataFrame)
    examples: dict[str, np.ndarray] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    curvature: dict[str, Any] = field(default_factory=dict)
    planes: dict[str, np.ndarray] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)

    @property
    def is_external(self) -> bool:
        """Whether the network was judged here, but trained elsewhere."""
        return self.run.external is not None or bool(self.record.get("external"))

    @property
    def state(self) -> str:
        """In a few words."""
        said = [f"{problem.sign} {problem.stage} {problem.state}" for problem in self.problems]
        said += [f"{TRIVIAL} trivial"] * bool(self.result.get("trivial"))
        said = said or ["✓ complete"]
        said += ["AutoAttack warns"] * bool(self.result.get("flags"))
        said += ["accepted under other code"] * bool(self.accepted) + ["external"] * self.is_external
        return ", ".join(said)


def describe(study: Study, run: Run) -> Entry:
    """Everything that the page says of one run."""
    entry = Entry(run)
    for stage in folder.stages_of(study, run.id):
        try:
            if not read(entry, stage):
                entry.problems.append(missing(study, stage, run))
                if stage == "train":
                    entry.history = heartbeat.unfinished_history(run)
                    break
                continue
            if reasons := folder.why_other(run, stage):
                why = f"of other settings or code than the present: {'; '.join(reasons)}."
                entry.problems.append(Problem(stage, "out of date", why))
        except ConfigError as error:
            entry.problems.append(Problem(stage, "damaged", f"{error}."))
    return entry


def read(entry: Entry, stage: str) -> bool:
    """Read what a stage has left; False if there is nothing. Raises ConfigError where it is damaged."""
    run = entry.run
    record = folder.record_of(run, stage)
    if record is None:
        return False
    entry.accepted += [f"{stage}: {accepted(note)}" for note in record.get("accepted", [])]
    if stage == "train":
        entry.record = record
        if not entry.is_external and (found := folder.trained(run)):
            entry.history = found[1]
    elif stage == "evaluate" and (judged := folder.judged(run)):
        entry.verdict, entry.images = judged
        entry.result = numbers.row(run, *judged)
        if (run.folder / "examples.npz").exists():
            entry.examples = read_arrays(run.folder / "examples.npz")
    elif stage == "curvature":
        entry.curvature = folder.measured(run, stage) or {}
    elif stage == "landscape" and folder.measured(run, stage):
        entry.planes = read_arrays(run.folder / "landscape.npz")
    return True


def accepted(note: dict[str, Any]) -> str:
    """Who declared a result valid under other code, when, and what had changed."""
    changes = ", ".join(note["changes"])
    return f"accepted although {changes}, by {note['by']}, {note['at']}, at commit {note['commit']}."


def missing(study: Study, stage: str, run: Run) -> Problem:
    """Why a stage has no result: it has failed, as `status` knows it, or is under way, or as the log of a try ends."""
    heard = heartbeat.beats(run, heartbeat.file_system_time(run.folder))
    at_work = any(heartbeat.is_alive(beat, age) for beat, age in heard)
    if not at_work and (said := failure(study, run, stage, [beat for beat, _ in heard])):
        return Problem(stage, "failed", f"no result; it ended with “{said}”")
    if stage == "train" and (epochs := heartbeat.epochs_done(run)):
        state = "running" if at_work else "unfinished"
        return Problem(stage, state, f"{epochs} of {run.training.epochs} epochs are done.")
    said = last_words(study, run, stage)[0].strip()
    return Problem(stage, "not done", f"no result; its log ends with “{said}”" if said else "not done yet.")
