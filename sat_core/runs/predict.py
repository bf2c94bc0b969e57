"""What a run will take, from what its rehearsal measured; and what it would have been predicted, now that it is known.

Two things a rehearsal cannot know: how many steps a stopping rule will save, and how many images will stand. So every
prediction is a span: from the least to the most, and likely. Nothing else is assumed.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sat_core import defenses
from sat_core.errors import ConfigError
from sat_core.hessian.traces import PROBES
from sat_core.runs import checkpoint, folder
from sat_core.runs.data import count_images
from sat_core.runs.files import read_json
from sat_core.study import Run, Study

STEPS, STANDING = 0.75, 0.5
"""Supposed of what is not known: three quarters of the steps where a rule may stop samples, half of the images stand.

Shares of steps over whole trainings are 0.5 to 0.9 in docs/evidence; AutoAttack accuracies of published defenses on
CIFAR-10 are around a half. Of ordinary training no image is supposed to stand.
"""
BROKEN = {"apgd-ce": 1.0, "apgd-t": 0.3}
"""Share of an attack's length for which it keeps an image that it breaks: most fall to APGD's first targets of nine, by
a count of passes on the demo; of FAB-T and Square, which find few, a half."""
ENOUGH, SPENT = 3, 30.0
"""Runs that measure the same piece, and their seconds in all, after which the others leave it to them."""
FALLEN = 0.4
"""Share of its validation that an image takes which falls: its clean prediction, and a few steps."""


@dataclass(frozen=True)
class Span:
    """Seconds: the least, what is likely, the most."""

    low: float
    likely: float
    high: float

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def __mul__(self, factor: float) -> Span:
        return Span(self.low * factor, self.likely * factor, self.high * factor)


def certain(value: float) -> Span:
    """A span of one value."""
    return Span(value, value, value)


@dataclass(frozen=True)
class Costs:
    """What the rehearsal of a run measured: see :func:`sat_core.runs.measure.measure`."""

    run: Run
    measured: dict[str, Any]

    @property
    def startup(self) -> float:
        """Seconds of a job until its work begins."""
        return float(self.measured["startup"])

    @property
    def memory(self) -> dict[str, float]:
        """The peak in MB over all pieces, of the process (``main``) and of the GPU (``gpu``)."""
        peaks = self.measured["memory_mb"].values()
        return {place: max(peak[place] for peak in peaks) for place in next(iter(peaks))}

    @property
    def data_mb(self) -> float:
        """The training images that the rehearsal held in memory."""
        record = folder.data_record(self.run) or {}
        return _megabytes(self.run, sum(record[part]["images"] for part in ("train", "validation") if part in record))

    def disk(self, run: Run) -> int:
        """Bytes of the run's folder: its rehearsal's, each file once, and snapshots and a checkpoint that it lacks."""
        found = {path.stat().st_ino: path.stat().st_size for path in self.run.folder.rglob("*") if path.is_file()}
        more = len(run.training.snapshot_epochs) - len(self.run.training.snapshot_epochs)
        saved = self.run.folder / folder.CHECKPOINT
        second = 0 if checkpoint.previous(saved).exists() else _size(saved)
        return sum(found.values()) + more * _size(self.run.folder / folder.WEIGHTS) + second


@dataclass(frozen=True)
class Cell:
    """The runs of one dataset, model, defense and epsilon, which differ in their seeds, and what each will take."""

    runs: list[Run]
    costs: Costs
    training: Span
    judging: Span
    curvature: Span
    measuring: float
    """The most that one of the jobs takes that measure curvature or lay planes, seconds."""

    @property
    def name(self) -> str:
        """Its address, as in a plan."""
        return self.runs[0].id.cell

    @property
    def chain(self) -> Span:
        """All that a run takes, one after the other; curvature is that of the mean run."""
        jobs = 2 + (self.curvature.high > 0)
        return self.training + self.judging + self.curvature + certain(jobs * self.costs.startup)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def in_common(found: dict[str, Costs | None]) -> dict[str, Costs | None]:
    """The same, with each piece's times in the median of all runs that have measured the same work.

    Nothing that is measured depends on epsilon, and AutoAttack's times not on the defense either, as no image breaks.
    The speed of a machine that others use wanders, and one moment's would be put down to one cell. Runs that have left
    a piece to others get it here; where those are gone, None.
    """
    result = dict(found)
    for piece in WORK:
        groups: dict[tuple[Any, ...], dict[str, Costs]] = {}
        for name, costs in result.items():
            if costs and (piece in costs.measured or piece in costs.measured["left"]):
                groups.setdefault(work(piece, costs.run, costs.measured), {})[name] = costs
        for group in groups.values():
            result |= shared(piece, group)
    return result


def shared(piece: str, group: dict[str, Costs]) -> dict[str, Costs] | dict[str, None]:
    """What runs that do the same work have measured of it, given to each of them."""
    own = [costs.measured for costs in group.values() if piece in costs.measured]
    if not own:
        return dict.fromkeys(group)
    times, peak = {piece: _median([measured[piece] for measured in own])}, {piece: own[0]["memory_mb"][piece]}
    given = {}
    for name, costs in group.items():
        memory = {"memory_mb": peak | costs.measured["memory_mb"]}
        given[name] = Costs(costs.run, costs.measured | times | memory)
    return given


WORK: dict[str, Callable[[Run, list[int | None]], tuple[Any, ...]]] = {
    "training": lambda run, _: (
        run.defense,
        run.training.model_dump_json(),
        run.attack.steps,
        json.dumps(run.options, sort_keys=True, default=str),
    ),
    "validation": lambda run, _: (run.validation.steps or run.attack.steps,),
    "judging": lambda _, sizes: tuple(sizes[:2]),
    "curvature": lambda _, sizes: tuple(sizes[2:]),
}
"""A piece -> what of a run, and of the sizes of the one that it rehearses, says that another has the same work."""


def work(piece: str, run: Run, measured: dict[str, Any]) -> tuple[Any, ...]:
    """Two runs for which this is equal measure the same when they measure a piece."""
    return run.dataset, run.model, measured["device"], *WORK[piece](run, measured["sizes"])


def left_to_others(run: Run, others: Iterable[Run], measured: dict[str, Any]) -> list[str]:
    """The pieces that ENOUGH other runs have measured for a run, and for long enough."""
    spent: dict[str, list[float]] = {piece: [] for piece in WORK}
    for other in others:
        try:
            found = read_json(other.folder / folder.MEASURED)
        except ConfigError:
            continue
        if other.id != run.id and found.get("format") == folder.MEASURED_FORMAT:
            for piece, seconds in found["seconds"].items():
                if work(piece, other, found) == work(piece, run, measured):
                    spent[piece].append(seconds)
    return [piece for piece, times in spent.items() if len(times) >= ENOUGH and sum(times) >= SPENT]


def _median(times: list[Any]) -> Any:
    if isinstance(times[0], dict):
        return {key: _median([one[key] for one in times]) for key in times[0]}
    if isinstance(times[0], list):
        sizes = [tuple(n for n, _ in blocks) for blocks in times]  # memory or patience ends sooner for some
        times = [blocks for blocks, own in zip(times, sizes, strict=True) if own == statistics.mode(sizes)]
    return np.median(times, axis=0).tolist()


def _megabytes(run: Run, images: int) -> float:
    channels, height, width = run.data.image
    return images * channels * height * width / 1e6


def in_small(rehearsal: Study, run: Run) -> Run | None:
    """The run of a rehearsal that stands for ``run``: of the same cell."""
    return next((rehearsal.run(id) for id in rehearsal.run_ids.values() if id.cell == run.id.cell), None)


def costs_of(rehearsal: Study, run: Run) -> Costs | None:
    """What the rehearsal of ``run`` has measured, or None. Raises ConfigError where that cannot be read."""
    small = in_small(rehearsal, run)
    if small is None or not (path := small.folder / folder.MEASURED).exists():
        return None
    measured = read_json(path)
    if measured.get("format") != folder.MEASURED_FORMAT:
        raise ConfigError(f"{path} is of another version of sat_core: delete {rehearsal.folder} and rehearse again")
    return Costs(small, measured)


def counts(run: Run) -> tuple[int, int, int]:
    """Images that a run trains on, validates on, judges."""
    train, test = count_images(run)
    train = run.data.train_images or train
    held_out = math.ceil(train * run.validation.fraction)  # as scikit-learn splits
    return train - held_out, held_out, min(run.evaluation.images or test, test)


def memory_needed(run: Run, costs: Costs) -> float:
    """Peak main memory in MB: what was measured, with the run's own number of training images."""
    return costs.memory["main"] + _megabytes(run, sum(counts(run)[:2])) - costs.data_mb


def training(run: Run, costs: Costs) -> Span:
    """Seconds of a training: steps of each epoch, by whether its curriculum is at its end, and validation."""
    if run.external:
        return certain(0.0)
    train, held_out, _ = counts(run)
    steps, spans = train / run.training.batch_size, certain(0.0)
    for kind, epochs in _kinds(run).items():
        spans += _step(costs.measured["training"][kind]) * (steps * epochs)
    images = held_out * run.training.epochs * costs.measured["validation"]
    return spans + Span(*(images * (FALLEN + (1 - FALLEN) * share) for share in (0.0, _standing(run), 1.0)))


def _step(cost: dict[str, float]) -> Span:
    """Of a step: no sample but one goes on, STEPS of them, all do. Between, cost is taken to be a line."""
    return Span(*(_at_share(cost, share) for share in (0.0, STEPS, 1.0)))


def _at_share(cost: dict[str, float], share: float) -> float:
    saved = max(0.0, cost["whole"] - cost["half"])  # that half a batch costs more than all of it is noise
    return max(0.0, cost["whole"] - 2 * (1 - share) * saved)


def attacked(run: Run) -> bool:
    """Whether it is trained on attacked images."""
    return run.external is not None or defenses.find(run.base, run.defense_file).selects_on == "robust"


def _standing(run: Run) -> float:
    return STANDING if attacked(run) else 0.0


def _kinds(run: Run) -> dict[str, int]:
    """How many epochs cost what the rehearsal's first does, and how many what its last: those of the last lambda."""
    names = list(_kind_of_each(run))
    return {kind: names.count(kind) for kind in ("first", "last")}


def _kind_of_each(run: Run) -> Iterator[str]:
    defense = defenses.build(run.base, run.options, run.training.epochs, run.defense_file)
    end = defense.curriculum_value(run.training.epochs - 1)
    return ("last" if defense.curriculum_value(epoch) == end else "first" for epoch in range(run.training.epochs))


def judging(run: Run, costs: Costs) -> Span:
    """Seconds of AutoAttack: no image stands the first attack, STANDING of them stand all, every one does."""
    attacks, images = costs.measured["judging"], counts(run)[2]
    shares = (0.0, _standing(run), 1.0)
    each = Span(*(_judged(run, costs, images, dict.fromkeys(attacks, share), 1.0) for share in shares))
    return each * len(run.evaluation.weights)


def _judged(run: Run, costs: Costs, images: int, after: dict[str, float], before: float) -> float:
    """Seconds of AutoAttack on so many images, by the shares of them that stand before, and after each attack."""
    total, blocks = 0.0, math.ceil(images / run.evaluation.batch_size)
    for attack, standing in after.items():
        measured, broken = costs.measured["judging"][attack], BROKEN.get(attack, 0.5)
        for part, share in ((broken, before), (1 - broken, standing)):  # no mean: few images take as long as more do
            total += part * blocks * _of_block(measured, images * share / blocks)
        before = standing
    return total


def _of_block(measured: list[tuple[int, float]], images: float) -> float:
    """Seconds of so many images, in the mean of blocks: on the lines between those measured, in proportion beyond."""
    sizes, seconds = zip((0, 0.0), *measured, strict=True)
    return float(np.interp(images, sizes, seconds)) * max(1.0, images / sizes[-1])


def curvature(run: Run, costs: Costs, stages: list[str]) -> Span:
    """Seconds of what is asked of ``curvature`` and ``landscape``; Lanczos may stop early, say after 5 steps."""
    config, unit, found = run.curvature, costs.measured.get("curvature"), certain(0.0)
    if unit is None:
        return found
    images, share = config.images, run.attack.steps / (run.validation.steps or run.attack.steps)
    attack = images * costs.measured["validation"] * share  # validation's own may take fewer steps, or more
    steps = Span(min(5, config.steps), config.steps / 2, config.steps)
    lanczos = steps * (images * unit["product"])
    if "curvature" in stages:
        networks = 1 + len(run.training.snapshot_epochs)
        found += (lanczos + certain(attack + 2 * PROBES * images * unit["product"])) * networks
        found += certain(images * unit["product"] * config.probes * config.steps)
    if "landscape" in stages:
        points = 3 * run.landscape.points**2
        again = run.landscape.reattack**2 * attack
        found += lanczos + certain(attack + images * unit["loss"] * points + again)
    return found


def training_as_it_came(run: Run, costs: Costs, history: pd.DataFrame) -> float:
    """What would have been predicted of a training's own share of steps, epoch by epoch, and of images that stood."""
    train, held_out, _ = counts(run)
    shares = history["steps"] / run.attack.steps if attacked(run) else history["steps"] + 1
    kinds = zip(_kind_of_each(run), shares, strict=True)
    steps = sum(_at_share(costs.measured["training"][kind], share) for kind, share in kinds)
    stood = (FALLEN + (1 - FALLEN) * history["validation_robust"]).sum()
    return steps * train / run.training.batch_size + held_out * costs.measured["validation"] * stood


def judging_as_it_came(run: Run, costs: Costs, verdict: dict[str, Any]) -> float:
    """What AutoAttack would have been predicted with the images that stood after each attack."""
    judged = (verdict, *([verdict["last"]] if "last" in verdict else []))
    return sum(_judged(run, costs, one["n"], one["after"], one["clean"]) for one in judged)


def taken(run: Run, stage: str) -> dict[str, Any] | None:
    """The record of a finished stage that was done for this study, or None: what another has done says nothing here."""
    try:
        record = folder.record_of(run, stage)
    except ConfigError:
        return None
    return None if record is None or "adopted_from" in record else record
