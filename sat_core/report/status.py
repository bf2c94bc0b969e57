"""Where every run of a study is: by its records, the heartbeats of those at work on it, and SLURM's queue.

Asked at any time and from anywhere, also while Snakemake runs. Needs no torch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from statistics import mean
from typing import NamedTuple

from sat_core.report import products
from sat_core.report.queue import Job, queued
from sat_core.runs import folder, heartbeat
from sat_core.runs.heartbeat import Beat, duration
from sat_core.study import Run, Study

WORKING = {"train": "training", "evaluate": "judging", "curvature": "measuring", "landscape": "measuring"}
"""A stage -> what a run is said to be doing."""
WAITS_FOR = {"train": "its training", "evaluate": "AutoAttack", "curvature": "its curvature", "landscape": "landscapes"}
WORDS = ("training", "judging", "measuring", "failed", "lost", "queued", "stale", "waiting", "done")
"""What a run may be, in the order of interest."""
Left = dict[str, float | None]
"""Stage that is to be done -> seconds that it will take; None: not known."""


class State(NamedTuple):
    """``word``: one of WORDS; ``text``: the rest of the sentence; ``left``: what is to be done.

    ``workers``: how many processes are at it; ``whole``: the seconds that what they do will have taken, by stage.
    """

    run: Run
    word: str
    text: str
    left: Left
    workers: int = 0
    whole: dict[str, float] = {}


class Status(NamedTuple):
    """``states``: a run each, in the study's order; ``products``: tables, figures, report that are not current.

    Of the products nothing is known before all runs are done.
    """

    study: Study
    states: list[State]
    products: list[str]

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do for this study."""
        return all(state.word == "done" for state in self.states) and not self.products

    @property
    def counts(self) -> dict[str, int]:
        """Word -> number of runs, in the order of interest."""
        said = [state.word for state in self.states]
        return {word: said.count(word) for word in WORDS if word in said}

    @property
    def left(self) -> str:
        """The time left for all of it, in words, if as many go on working as do now."""
        parts = [seconds for state in self.states for seconds in state.left.values()]
        known = [seconds for seconds in parts if seconds is not None]
        if not parts:
            return ""
        if not known:
            return "time left unknown before the first of a kind is under way"
        workers = max(sum(state.workers for state in self.states), 1)
        longest = max(sum(filter(None, state.left.values())) for state in self.states)
        at_least = "at least " if len(known) < len(parts) else "about "
        return f"{at_least}{duration(max(sum(known) / workers, longest))} left, {workers} at a time"


def look(study: Study) -> Status:
    """Where the study is at this moment."""
    now, jobs = heartbeat.file_system_time(study.folder), queued(study)
    states = expected(study, [state_of(study, run, jobs, now) for run in study.runs])
    done = all(state.word == "done" for state in states)
    memo: products.Memo = {}
    made = {**products.of(study, memo), "report": products.report(study, memo)} if done else {}
    return Status(study, states, [name for name, product in made.items() if not product.is_current()])


def state_of(study: Study, run: Run, jobs: dict[tuple[str, str], Job], now: float) -> State:
    """Where one run is."""
    stages = folder.stages_of(study, run.id)
    todo = [stage for stage in stages if not folder.is_current(run, stage)]
    heard = heartbeat.beats(run, now) if run.folder.is_dir() else []
    alive = [beat for beat, age in heard if heartbeat.is_alive(beat, age)]
    left: Left = dict.fromkeys(stages if "train" in todo else todo)  # of other weights all else is done again
    if alive:
        left |= {stage_of(beat): beat.left for beat in alive}
        text = "; ".join(f"{beat.doing}{of_others(run, beat)}" for beat in alive) + where(alive[0])
        whole = {stage_of(beat): beat.left / (1 - beat.share) for beat in alive if beat.left and beat.share < 1}
        return State(run, WORKING[stage_of(alive[0])], text, left, len(alive), whole)
    if not todo:
        return State(run, "done", verdict(run), left)
    for stage in todo:
        if job := jobs.get((stage, run.id.path)):
            waits = job.reason if job.state == "PENDING" else job.state.lower()
            return State(run, "queued", f"SLURM {job.id}: {waits}", left)
    for stage in todo:
        if said := failure(study, run, stage, [beat for beat, _ in heard]):
            return State(run, "failed", f"{stage}: {said}", left)
    for beat, age in heard:
        if stage_of(beat) in todo and not beat.ended and not of_others(run, beat):
            return State(run, "lost", f"no sign of life for {duration(age)}{where(beat)}: {beat.doing}", left)
    for stage in todo:
        if reasons := folder.why_again(run, stage):
            return State(run, "stale", f"{stage}: {'; '.join(reasons)}", left)
    epochs = heartbeat.epochs_done(run) if "train" in todo else 0
    text = f"epoch {epochs}/{run.training.epochs} is done" if epochs else f"for {WAITS_FOR[todo[0]]}"
    if heartbeat.began_otherwise(run):
        text += f", which {heartbeat.ANEW}"
    return State(run, "waiting", text, left)


def stage_of(beat: Beat) -> str:
    """``evaluate-1-of-4`` -> evaluate."""
    return beat.work.partition("-")[0]


def of_others(run: Run, beat: Beat) -> str:
    """A remark where work is for settings or code that are no longer the present ones."""
    return "" if beat.of == heartbeat.hash_of(run, stage_of(beat)) else " (of other settings or code)"


def where(beat: Beat) -> str:
    """Who does it: SLURM's id of the job, or the process."""
    return f" (SLURM {beat.job})" if beat.job else f" ({beat.host}, process {beat.process})"


def verdict(run: Run) -> str:
    """What came out."""
    record = folder.record_of(run, "evaluate")
    return f"clean {100 * record['clean']:.1f} %, robust {100 * record['robust']:.1f} %" if record else ""


def failure(study: Study, run: Run, stage: str, beats: list[Beat]) -> str:
    """What was said at last where a stage has failed, of the present settings and code; "" if it has not."""
    if said := folder.hopeless(run, stage):
        return said
    ended = [beat for beat in beats if stage_of(beat) == stage and beat.ended and not of_others(run, beat)]
    if ended:
        return next((beat.said for beat in ended if beat.ended == "failed"), "")
    if stage == "train" and folder.data_record(run) is None and (said := last_error(study, run, "data")):
        return f"its data: {said}"
    return last_error(study, run, stage)


def last_error(study: Study, run: Run, stage: str) -> str:
    """The error with which a log ends whose job failed before it had begun, unless the study was edited since."""
    said, when = last_words(study, run, stage)
    failed = when >= study.path.stat().st_mtime and re.match(r"error: |[\w.]+(Error|Exception)\b", said)
    return said.removeprefix("error: ") if failed else ""


def last_words(study: Study, run: Run, stage: str) -> tuple[str, float]:
    """The last line of the log of whoever last tried, and when it was written; "" and 0 if nobody did."""
    logs = study.folder / "logs" / stage
    name = run.dataset if stage == "data" else run.id.path
    found = [*logs.glob(f"{name}.log"), *logs.glob(f"{name}-*.log")]
    if not found:
        return "", 0.0
    newest = max(found, key=lambda path: path.stat().st_mtime_ns)
    with newest.open("rb") as file:
        file.seek(max(newest.stat().st_size - 4000, 0))
        lines = re.split(r"[\r\n]+", file.read().decode(errors="replace").rstrip())
    return lines[-1], newest.stat().st_mtime


def expected(study: Study, states: list[State]) -> list[State]:
    """With the time that each stage will take, from runs of the same dataset and model that have done it, or do it."""
    seen: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for state in states:
        for stage, seconds in taken(study, state).items():
            seen[kind(state.run, stage)].append(seconds)
    usual = {about: mean(seconds) for about, seconds in seen.items()}

    def filled(state: State) -> Left:
        return {
            stage: usual.get(kind(state.run, stage)) if seconds is None else seconds
            for stage, seconds in state.left.items()
        }

    return [state._replace(left=filled(state)) for state in states]


def kind(run: Run, stage: str) -> tuple[str, str, str]:
    """What takes about the same time."""
    return run.dataset, run.model, stage


def taken(study: Study, state: State) -> dict[str, float]:
    """Seconds that each stage of a run that is done has taken, or that is under way will have."""
    found = dict(state.whole)
    for stage in folder.stages_of(study, state.run.id):
        record = folder.record_of(state.run, stage) if stage not in state.left or state.word == "stale" else None
        if (seconds := folder.seconds_of(record or {})) is not None:
            found[stage] = seconds
    return found
