"""A run's folder: its files read, verified and written, and whether they are of the present settings and code.

Each stage of a run leaves a record, a JSON file written last, which says what the result is made of and holds the
checksums of the files beside it. Needs no torch.
"""

from __future__ import annotations

import csv
import errno
import getpass
import logging
import os
import shutil
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sat_core.errors import ConfigError, Hopeless
from sat_core.runs.files import atomic, checksum, is_whole, make_folder, read_json, sole_writer, verify, write_json
from sat_core.study import Run, RunId, Study
from sat_core.study.fingerprint import changes, environment, git_commit, made_of
from sat_core.study.reading import seen_from

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


class Stage(NamedTuple):
    """``ids``: the field of a table that lists the runs; ``record``: written last; ``files``: those beside it."""

    ids: str
    record: str
    files: tuple[str, ...] = ()


CHECKPOINT = "checkpoint.pt"
WEIGHTS, HISTORY, IMAGES = "model.safetensors", "history.csv", "autoattack.csv"
CARD = "README.md"
"""The model card, which the report or `judge` writes last: gone as soon as anything that it tells of is others."""
LAST, RAW, LAST_IMAGES = "last.safetensors", "raw.safetensors", "autoattack-last.csv"
"""Weights of the last epoch; where averages are judged, those in training at the selected one; the last's verdict."""
STAGES = {
    "train": Stage("run_ids", "run.json", (WEIGHTS, HISTORY)),
    "evaluate": Stage("run_ids", "autoattack.json", (IMAGES, "examples.npz")),
    "curvature": Stage("curvature_ids", "curvature.json"),
    "landscape": Stage("landscape_ids", "landscape.json", ("landscape.npz",)),
}
KEPT = ".kept"
"""Folder of a run that holds every finished result a second time, as hard links. Snakemake does not know them: what it
deletes, because another job of an allocation failed or before it tries again, comes back from there."""
FAILED = "failed.json"
"""Why a run cannot succeed as long as its settings and the code are what they are."""
INTERRUPTED = "interrupted.json"
MEASURED, MEASURED_FORMAT = "measured.json", 4
"""What the work of a rehearsal's run costs, piece by piece."""
_LOADED: dict[Path, dict[str, str]] = {}
"""File of prepared images -> checksums of the parts of it that this process has loaded last: see :func:`loaded`."""


@cache
def _asked(study: Study) -> dict[str, frozenset[RunId]]:
    tables = study.file.tables.values()
    return {stage: frozenset(id for t in tables for id in getattr(t, about.ids)) for stage, about in STAGES.items()}


def stages_of(study: Study, id: RunId) -> list[str]:
    """The stages that a study asks of a run, in their order."""
    return [stage for stage, ids in _asked(study).items() if id in ids]


def write_record(run: Run, stage: str, content: dict[str, Any]) -> None:
    """Finish a stage: write its record, whose presence means complete, and keep all of it."""
    about = STAGES[stage]
    files = content.get("files", {}) | {name: checksum(run.folder / name) for name in about.files}
    record = {"run": run.id.path, **content, "files": files, "made_of": present(run, stage)}
    if stage in ("train", "evaluate"):
        (run.folder / CARD).unlink(missing_ok=True)
    write_json(run.folder / about.record, record | {"environment": environment()})
    _keep(run, stage, record)
    if _failed(run).get("stage") == stage:
        (run.folder / FAILED).unlink()
    if stage in ("train", "evaluate"):  # the others, which may run beside one of these, save nothing on the way
        (run.folder / INTERRUPTED).unlink(missing_ok=True)


def _keep(run: Run, stage: str, record: dict[str, Any]) -> None:
    for name in (*record["files"], STAGES[stage].record):
        _link(run.folder / name, run.folder / KEPT / name)


def _link(source: Path, target: Path) -> None:
    """``source`` under a second name, or a copy of it where the file system has no hard links."""
    make_folder(target.parent)
    if target.exists() and target.samefile(source):
        return
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    try:
        os.link(source, beside)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EACCES):
            raise
        shutil.copy2(source, beside)
    beside.replace(target)


def finished(run: Run, stage: str) -> bool:
    """Whether a stage's result is there, whole and current."""
    try:
        record = record_of(run, stage)
        if record is None:
            return False
        for name in record["files"]:
            _verify(run, record, name, "it will be written again")
    except ConfigError as error:
        log.warning("%s", error)
        return False
    if reasons := _changes(run, stage, record):
        log.info("%s is of other settings or code: %s", run.folder / STAGES[stage].record, "; ".join(reasons))
    return not reasons


def _verify(run: Run, record: dict[str, Any], name: str, remedy: str) -> None:
    """Raise ConfigError unless a file is what the record says, or can be put back because what was kept is."""
    path, kept, expected = run.folder / name, run.folder / KEPT / name, record["files"][name]
    if is_whole(path, expected):
        return
    if is_whole(kept, expected):
        _link(kept, path)
        log.warning("%s was damaged or missing, and is put back", path)
        return
    verify(path, expected, remedy)


def _put_back(run: Run, stage: str, there: dict[str, Any] | None) -> dict[str, Any] | None:
    """Files of a finished stage that were deleted are linked to what was kept of it, if that is of the present.

    Without its record (``there`` is None) the others are no result, but parts of one that was begun and not ended: all
    are put back. Returns the record that is there now.
    """
    name, kept = STAGES[stage].record, run.folder / KEPT
    try:
        record = read_json(kept / name)
    except ConfigError:  # there is none, or it is damaged
        return there
    if _changes(run, stage, record) if there is None else record != there:
        return there
    files = record["files"] if there is None else [file for file in there["files"] if not (run.folder / file).exists()]
    back = [file for file in files if is_whole(kept / file, record["files"][file])]
    if not all(file in back or is_whole(run.folder / file, record["files"][file]) for file in files):
        return there
    back += [name] if there is None else []
    for file in back:
        _link(kept / file, run.folder / file)
    log.info("%s: %s of a finished run put back", run.folder, ", ".join(back))
    return record


def adopt(run: Run, stage: str) -> bool:
    """Use what another study has finished of the same run, of the same settings, code and images, if there is such.

    Its files get a second name here and are never changed; the record says where they are from.
    """
    if data_record(run) is None:
        return False  # nothing is known of the images yet
    about = STAGES[stage]
    for path in sorted(Path("results").glob(f"*/runs/{run.id.path}/{about.record}")):
        try:
            record = read_json(path)
            if path.parent == run.folder or _changes(run, stage, record):
                continue
            for name, expected in record["files"].items():
                verify(path.parent / name, expected, "the run is made anew")
        except ConfigError:  # or somebody else's, and not to be read
            continue
        try:
            with sole_writer(run.folder, stage):
                for name in record["files"]:
                    _link(path.parent / name, run.folder / name)
                write_json(run.folder / about.record, record | {"adopted_from": path.parent.as_posix()})
                _keep(run, stage, record)
        except (ConfigError, OSError) as error:
            log.info("%s: not taken from %s: %s", run.folder / about.record, path.parent, error)
            return False
        log.info("%s: taken from %s", run.folder / about.record, path.parent)
        return True
    return False


def record_of(run: Run, stage: str) -> dict[str, Any] | None:
    """A stage's record, or None if there is none; raises ConfigError if it is damaged.

    What was deleted of a finished stage is put back first, and a damaged record.
    """
    path = run.folder / STAGES[stage].record
    try:
        record = read_json(path) if path.exists() else None
    except ConfigError:
        if (kept := _put_back(run, stage, None)) is None:
            raise
        return kept
    if record is None or not all((run.folder / name).exists() for name in record["files"]):
        return _put_back(run, stage, record)
    return record


def seconds_of(record: dict[str, Any]) -> float | None:
    """How long a stage took by its record, what was judged of the last epoch included; None where it does not say."""
    seconds = record.get("seconds")
    if isinstance(seconds, dict):
        return sum(seconds.values()) + (seconds_of(record.get("last", {})) or 0)
    return seconds


def is_current(run: Run, stage: str) -> bool:
    """Whether a stage's result is there and of the present settings and code, as :func:`why_again` knows it."""
    reasons = why_again(run, stage)
    return not reasons and (run.folder / STAGES[stage].record).exists()


def why_again(run: Run, stage: str) -> list[str]:
    """Why a result that is there has to be made again, a phrase each.

    Of its files the small ones are verified that were touched after the record, which is written last.
    """
    try:
        record = record_of(run, stage)
        if record is None:
            return []
        missing = [f"{name} is missing" for name in record["files"] if not (run.folder / name).exists()]
        written = (run.folder / STAGES[stage].record).stat().st_mtime_ns
        for name in STAGES[stage].files:
            path = run.folder / name
            if path.suffix != ".safetensors" and path.exists() and path.stat().st_mtime_ns > written:
                _verify(run, record, name, "it will be made again")
        return missing + _changes(run, stage, record)
    except ConfigError as error:
        return [str(error)]


def why_other(run: Run, stage: str) -> list[str]:
    """Why a result that is there is not of the present settings and code, a phrase each; raises ConfigError.

    A number stays what it is when the weights behind it are deleted.
    """
    record = record_of(run, stage)
    return [] if record is None else _changes(run, stage, record)


def present(run: Run, stage: str) -> dict[str, Any]:
    """What the result of a stage is made of now: settings, code and the images, by their checksums."""
    parts = {"train": () if run.external else ("train", "validation"), "evaluate": ("test",)}
    used = parts.get(stage, (run.curvature.split,))
    known = _checksums(_known_images(run)) | _LOADED.get(data_file(run).absolute(), {})
    return made_of(run, stage) | {"data": {part: known[part] for part in used if part in known}}


def loaded(run: Run, record: dict[str, Any], parts: Iterable[str]) -> None:
    """Note which images this process has in memory: they are what its results are made of, whatever is prepared since.

    ``record``: that of the prepared images, as it was when ``parts`` of them were loaded.
    """
    _LOADED.setdefault(data_file(run).absolute(), {}).update(_checksums({part: record[part] for part in parts}))


def _checksums(images: dict[str, Any]) -> dict[str, str]:
    return {part: about["sha256"] for part, about in images.items() if part != "made_of"}


def differences(run: Run, stage: str, recorded: dict[str, Any]) -> list[str]:
    """What has changed since a result was made of ``recorded``, a phrase each."""
    if not recorded:
        return ["it is of an earlier version of sat_core"]
    known = _known_images(run)
    images = [p for p, found in recorded.get("data", {}).items() if p in known and known[p]["sha256"] != found]
    return changes(recorded, run, stage) + [f"the {part} images are others" for part in images]


def _known_images(run: Run) -> dict[str, Any]:
    """As :func:`data_record`; nothing where that is damaged: it will be made again, and asked then."""
    try:
        return data_record(run) or {}
    except ConfigError:
        return {}


def _changes(run: Run, stage: str, record: dict[str, Any]) -> list[str]:
    said = differences(run, stage, record.get("made_of", {}))
    if (other := record.get("run", run.id.path)) != run.id.path:  # in a folder that is not called so
        said.append(f"it is of {other}")
    if stage != "train" and record["weights"] != weights(run):
        said.append("it is of other weights")
    return said


def weights(run: Run) -> str | None:
    """The checksum of the selected weights, as recorded; None if the run is not trained."""
    record = record_of(run, "train")
    return None if record is None else record["files"][WEIGHTS]


def trained_record(run: Run) -> dict[str, Any]:
    """``run.json``; raises ConfigError unless the run is trained, with its present settings and code."""
    record = record_of(run, "train")
    if record is None:
        raise ConfigError(f"{run.folder / 'run.json'} is missing: the run is not trained yet; `train` it first")
    if reasons := _changes(run, "train", record):
        raise ConfigError(
            f"{run.folder / 'run.json'} is of another configuration or code ({'; '.join(reasons)}); `train` the run "
            "again first"
        )
    return record


def trained_weights(run: Run, name: str = WEIGHTS) -> str:
    """The checksum of a trained run's weights, which are there; raises ConfigError as :func:`trained_record` does."""
    record = trained_record(run)
    _verify(run, record, name, "`train` the run again, which takes it from the checkpoint")
    return record["files"][name]


def write_history(run: Run, rows: list[dict[str, Any]]) -> None:
    """Write ``history.csv``, a dict an epoch; none where there has been no epoch yet."""
    if not rows:
        (run.folder / HISTORY).unlink(missing_ok=True)
        return
    with atomic(run.folder / HISTORY) as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def withdraw(run: Run, stage: str) -> None:
    """Take away a result that is being made anew, before parts of the new one stand beside it.

    One of other settings remains in KEPT; one of the present, which is made anew because it is damaged, does not.
    """
    _withdraw_record(run, stage)
    for name in STAGES[stage].files:
        (run.folder / name).unlink(missing_ok=True)


def _withdraw_record(run: Run, stage: str) -> None:
    record = run.folder / KEPT / STAGES[stage].record
    for name in (CARD, STAGES[stage].record):
        (run.folder / name).unlink(missing_ok=True)
    try:
        damaged = not _changes(run, stage, read_json(record))
    except ConfigError:
        damaged = True
    if damaged:
        record.unlink(missing_ok=True)


def trained(run: Run) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """``run.json`` and ``history.csv``, verified, or None if the run is not trained; raises ConfigError."""
    import pandas as pd  # half a second, which planning does without

    record = record_of(run, "train")
    if record is None:
        return None
    _verify(run, record, HISTORY, "run `train` again, which takes it from the checkpoint")
    return record, pd.read_csv(run.folder / HISTORY)


def write_images(run: Run, name: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Write AutoAttack's verdict on each image: (index, label, prediction, broken_by); one there was is withdrawn."""
    _withdraw_record(run, "evaluate")
    with atomic(run.folder / name) as file:
        csv.writer(file).writerows([("index", "label", "prediction", "broken_by"), *rows])


def judged(run: Run) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """The verdict on the weights that the run has now, summary and images, or None; raises ConfigError if damaged."""
    import pandas as pd

    summary = measured(run, "evaluate")
    return None if summary is None else (summary, pd.read_csv(run.folder / IMAGES, keep_default_na=False))


def measured(run: Run, stage: str) -> dict[str, Any] | None:
    """The record of what was measured on the weights that the run has now, or None; raises ConfigError if damaged."""
    record = record_of(run, stage)
    if record is None or record["weights"] != weights(run):
        return None
    for name in record["files"]:
        _verify(run, record, name, f"delete it and run `{stage}` again")
    return record


def measured_of(run: Run, real: Run) -> dict[str, Any]:
    """What ``measured.json`` of a rehearsal's run is of: its weights, and sizes of the run that it rehearses."""
    sizes = [real.evaluation.batch_size, real.evaluation.images, real.curvature.batch_size, real.curvature.images]
    return {"format": MEASURED_FORMAT, "weights": weights(run), "sizes": sizes}


def is_measured(run: Run, real: Run) -> bool:
    """Whether the costs of a rehearsal's run are known, for its present weights."""
    try:
        found = read_json(run.folder / MEASURED)
    except ConfigError:
        return False
    now = measured_of(run, real)
    return now == {key: found.get(key) for key in now}


def data_file(run: Run) -> Path:
    """Where the prepared images of a run's dataset are."""
    return run.results / "data" / f"{run.dataset}.safetensors"


def data_record(run: Run) -> dict[str, Any] | None:
    """What is known of the prepared images: for each part counts and a checksum; None before they are prepared."""
    path = data_file(run).with_suffix(".json")
    return read_json(path) if path.exists() else None


def claim(study: Study) -> None:
    """Make the study's results its own; raises ConfigError where they are those of another file of the same name."""
    path = study.folder / ".study"
    here = seen_from(Path(), study.path)
    other = path.read_text(encoding="utf-8") if path.exists() else here
    namesake = Path(other).stem == study.name  # else somebody has copied the folder, under the name that it has now
    if other != here and namesake and Path(other).exists() and not Path(other).samefile(study.path):
        raise ConfigError(
            f"{study.folder} holds the results of {other}; {here} has the same name, so give one of the two another"
        )
    if not path.exists() or other != here:
        with atomic(path) as file:
            file.write(here)


def accept(run: Run) -> list[str]:
    """Declare the run's results to be valid under today's code; returns what was accepted, a phrase each.

    Recorded with who, when, the commit, and the code before and now. Raises ConfigError if the run is not trained, or
    where settings or images differ, not code alone: that is another experiment.
    """
    if record_of(run, "train") is None:
        raise ConfigError(f"{run.folder / 'run.json'} is missing: there is nothing to accept")
    accepted, records = [], {}
    for stage, about in STAGES.items():
        record = record_of(run, stage)
        if record is None or not (reasons := _changes(run, stage, record)):
            continue
        now = made_of(run, stage)
        of_code = [reason for reason in reasons if reason.endswith(" changed")]
        if other := [reason for reason in reasons if reason not in of_code]:
            raise ConfigError(f"{run.folder / about.record}: only changed code can be accepted, not this: {other[0]}")
        note = {
            "by": _user(),
            "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "commit": git_commit(),
            "changes": of_code,
            "before": record["made_of"]["code"],
            "now": now["code"],
        }
        record["made_of"] |= {"code": now["code"]}
        records[stage] = record | {"accepted": [*record.get("accepted", []), note]}
        accepted += [f"{stage}: {reason}" for reason in of_code]
    for stage, record in records.items():
        write_json(run.folder / STAGES[stage].record, record)
        _keep(run, stage, record)
    return accepted


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may know no name for its user
        return f"user {os.getuid()}"


def give_up(run: Run, stage: str, error: Hopeless) -> None:
    """Put on record that a stage cannot succeed, so that it is not tried again with the same settings and code."""
    write_json(run.folder / FAILED, {"stage": stage, "said": str(error), "made_of": present(run, stage)})


def hopeless(run: Run, stage: str) -> str | None:
    """Why there is no use in trying this stage again, or None."""
    found = _failed(run)
    return found["said"] if found.get("stage") == stage and not differences(run, stage, found["made_of"]) else None


def _failed(run: Run) -> dict[str, Any]:
    try:
        return read_json(run.folder / FAILED)
    except ConfigError:
        return {}


def count_interruption(run: Run, stage: str) -> None:
    """Note that a stage was stopped after it had saved progress, which is no failure: see :func:`interruptions`."""
    saved = [run.folder / CHECKPOINT] if stage == "train" else list(run.folder.glob("autoattack.parts/*.json"))
    newest = max((path.stat().st_mtime_ns for path in saved if path.exists()), default=0)
    before = _interrupted(run)
    if newest and newest != before["newest"]:  # not later: a clock may have run ahead
        write_json(run.folder / INTERRUPTED, {"times": before["times"] + 1, "newest": newest})


def interruptions(run: Run) -> int:
    """How often the stage at work was stopped with progress saved: attempts that no budget of failures counts."""
    return _interrupted(run)["times"]


def _interrupted(run: Run) -> dict[str, int]:
    try:
        return read_json(run.folder / INTERRUPTED)
    except ConfigError:
        return {"times": 0, "newest": 0}
