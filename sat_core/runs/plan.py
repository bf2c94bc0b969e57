"""What a study will take, before it does: measured by its rehearsal, or else guessed; and then what it took."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from sat_core.errors import ConfigError
from sat_core.runs import folder, needs, predict
from sat_core.runs.network import fresh_model
from sat_core.runs.predict import STANDING, STEPS, Cell, Costs, Span
from sat_core.study import Run, Study

STANDARD_PASSES = 13_000
"""Forward passes of AutoAttack `standard` on an image that stays robust, at 10 classes, a backward counted as two.

APGD-CE 100 steps, APGD-T and FAB-T 100 steps each for 9 target classes, with backward: 3 (100 + 900 + 900) = 5,700;
FAB-T takes a second forward at each step and a search: 900 + 900; Square up to 5,000. An upper bound, rounded up.
"""
RATES = {"on a GPU": 20.0, "on a core": 0.03}
"""TFLOP/s that a guess supposes to be sustained. On a core networks for 8x8 images reach 0.02, ResNets 0.08."""


def plan(study: Study, rehearsal: Study | None, at_once: int, limits: dict[str, Any], write: bool) -> str:
    """What a study will take ``at_once`` GPUs (or runs, without), within ``limits`` of a site; what does not fit it.

    ``rehearsal``: the study's, or None. With ``write`` what the jobs need goes to the study's resources file.
    """
    groups: dict[str, list[Run]] = {}
    for run in study.runs:
        groups.setdefault(run.id.cell, []).append(run)
    found = {name: predict.costs_of(rehearsal, runs[0]) if rehearsal else None for name, runs in groups.items()}
    if rehearsal is None or not any(found.values()):
        if write:
            raise ConfigError(
                f"{study.path}: --write writes what a rehearsal has measured, and there is none: snakemake "
                f"--configfile {study.path} --config rehearse=true first"
            )
        return guess(study, at_once)
    found = predict.in_common(found)
    cells = [cell_of(study, groups[name], costs) for name, costs in found.items() if costs is not None]
    said = [table(cells).to_string(index=False), "", summary(cells, at_once, limits)]
    for name in (name for name, costs in found.items() if costs is None):
        said.append(f"{name} is not in this: {why_not(rehearsal, groups[name][0])}")
    misfits = needs.misfits(cells, limits)
    to_set = needs.overrides(misfits)
    said += ["", *(misfit.said for misfit in misfits)] if misfits else []
    if write and to_set:
        needs.write(study, misfits)
        said.append(f"Written to {study.resources_file}, which the study uses from now on.")
    elif write:
        said.append("Nothing was written: all jobs ask for what they need.")
    elif to_set:
        said += ["", "To be set, by `plan --write` or by hand:", needs.as_yaml(to_set)]
    if (past := comparison(cells)) is not None:
        said += ["", "What was planned and what it took, a run in the mean:", past.to_string(index=False), "", CAME]
    return "\n".join(said)


CAME = (
    "as it came: what would have been planned, had the share of steps that rules saved and the share of images that "
    "stood been known. Only runs finished here count."
)


def cell_of(study: Study, runs: list[Run], costs: Costs) -> Cell:
    """The predictions of a cell, of a run in the mean."""
    jobs = [predict.curvature(run, costs, [stage]) for run in runs for stage in folder.stages_of(study, run.id)]
    mean = sum(jobs, predict.certain(0.0)) * (1 / len(runs))
    longest = max(job.high for job in jobs)
    return Cell(runs, costs, predict.training(runs[0], costs), predict.judging(runs[0], costs), mean, longest)


def why_not(rehearsal: Study, run: Run) -> str:
    """Why a rehearsal has not measured a run."""
    if (small := predict.in_small(rehearsal, run)) is None:
        return "it has not been rehearsed"
    if (small.folder / folder.MEASURED).exists():
        return f"what it left to other runs is gone: delete {small.folder} and rehearse again"
    said = [folder.hopeless(small, stage) for stage in folder.STAGES]
    return next((f"its rehearsal failed: {why}" for why in said if why), "its rehearsal is not finished")


def table(cells: list[Cell]) -> pd.DataFrame:
    """A row a cell: what one run takes."""
    rows = []
    for cell in cells:
        memory = cell.costs.memory | {"main": predict.memory_needed(cell.runs[0], cell.costs)}
        row = {"run": cell.name, "seeds": len(cell.runs), "training": shown(cell.training)}
        row |= {"AutoAttack": shown(cell.judging), "curvature": shown(cell.curvature) if cell.curvature.high else "-"}
        rows.append(row | {f"{place} MB": round(value) for place, value in memory.items()})
    return pd.DataFrame(rows)


def summary(cells: list[Cell], at_once: int, limits: dict[str, Any]) -> str:
    """Hours in all, disk, wall time; from what, and what is supposed."""
    parts = {
        part: sum((getattr(cell, part) * len(cell.runs) for cell in cells), predict.certain(0.0))
        for part in ("training", "judging", "curvature")
    }
    disk = sum(cell.costs.disk(run) for cell in cells for run in cell.runs) / 1e9
    at_once = min(at_once, limits.get("jobs") or at_once)
    spans = [cell.chain for cell in cells for _ in cell.runs]
    likely, high = (makespan([getattr(span, end) for span in spans], at_once) for end in ("likely", "high"))
    devices = sorted({cell.costs.measured["device"] for cell in cells})
    names = {"training": "training", "judging": "AutoAttack", "curvature": "curvature and planes"}
    lines = [f"{names[part]} {shown(span)}" for part, span in parts.items() if span.high]
    return (
        f"All {len(spans)} runs: {'; '.join(lines)}; {disk:.3g} GB on disk. With {at_once} at a time about "
        f"{duration(likely)}, at most {duration(high)}, jobs' starts among it.\n"
        f"Measured on {'; '.join(devices)}: likely (least to most). Likely means {STEPS:.0%} of the steps where a rule "
        f"may stop an attack, and {STANDING:.0%} of the images standing to the end."
    )


def makespan(seconds: Iterable[float], at_once: int) -> float:
    """When the last is done, if the longest go first and so many are done at a time."""
    free = [0.0] * at_once
    for one in sorted(seconds, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + one)
    return max(free)


def comparison(cells: list[Cell]) -> pd.DataFrame | None:
    """A row a cell that has finished runs: seconds planned, as it came, and taken; None if there is no such cell."""
    rows: list[dict[str, Any]] = []
    for cell in cells:
        row: dict[str, Any] = {"run": cell.name}
        own = [run for run in cell.runs if not run.external]
        if trained := [(run, record) for run in own if (record := predict.taken(run, "train"))]:
            came = [predict.training_as_it_came(run, cell.costs, history(run)) for run, _ in trained]
            row |= compared("training", cell.training, came, [record["seconds"] for _, record in trained])
        if judged := [(run, record) for run in cell.runs if (record := predict.taken(run, "evaluate"))]:
            came = [predict.judging_as_it_came(run, cell.costs, record) for run, record in judged]
            took = [folder.seconds_of(record) or 0 for _, record in judged]
            row |= compared("AutoAttack", cell.judging, came, took)
        if len(row) > 1:
            rows.append(row)
    return pd.DataFrame(rows).fillna("") if rows else None


def compared(name: str, planned: Span, came: list[float], took: list[float]) -> dict[str, str]:
    """Planned, as it came, taken, and the last two in proportion."""
    mean, taken = sum(came) / len(came), sum(took) / len(took)
    ratio = f"{mean / taken:.2f}" if taken else ""
    columns = {"": shown(planned), " as it came": duration(mean), " took": duration(taken), " came/took": ratio}
    return {f"{name}{column}": value for column, value in columns.items()}


def history(run: Run) -> pd.DataFrame:
    """The training of a run, a row an epoch."""
    return pd.read_csv(run.folder / folder.HISTORY)


def duration(seconds: float) -> str:
    """Such as 45 s, 12 min, 3.2 h; two digits that count."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.{1 if seconds < 10 * size else 0}f} {unit}"
    return f"{seconds:.{1 if seconds < 10 else 0}f} s" if seconds >= 1 or not seconds else "<1 s"


def shown(span: Span) -> str:
    """Likely, and from the least to the most where they differ."""
    low, likely, high = (duration(value) for value in (span.low, span.likely, span.high))
    return likely if low == high else f"{likely} ({low} to {high})"


def forward_flops(run: Run) -> tuple[float, int]:
    """Floating-point operations of one image's forward pass, and the number of parameters; allocates nothing."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = fresh_model(run).eval()
        model(torch.empty(1, *run.data.image))
    return float(counter.get_total_flops()), sum(parameter.numel() for parameter in model.parameters())


def cost(run: Run, flops: float, parameters: int) -> dict[str, float]:
    """FLOPs of training and of judging a run, at most, and bytes of its files, from those of one image's forward pass.

    A backward pass counts as two forward ones, or one where only the input's gradient is asked for. A run that
    stops PGD early costs less; H-SAT's Gauss-Newton difficulty costs more and is counted as ten forward passes a step.
    """
    train, held_out, judged = predict.counts(run)
    step = 2 + (10 if run.options.get("metric") == "gauss_newton" else 0)
    attack = run.attack.steps * step if predict.attacked(run) else 0
    passes = train * (attack + 3) + held_out * (2 * (run.validation.steps or run.attack.steps) + 2)
    return {
        "training": 0.0 if run.external else flops * passes * run.training.epochs,
        "AutoAttack <=": flops * judged * STANDARD_PASSES,
        # two checkpoints of weights, momentum, best weights; the selected weights and the last; the snapshots
        "bytes": 4 * parameters * (8 + len(run.training.snapshot_epochs)),
    }


def guess(study: Study, at_once: int = 1) -> str:
    """What a study may take, by operations counted on its networks and a rate that is supposed."""
    sizes = {key: forward_flops(run) for key, run in {(run.dataset, run.model): run for run in study.runs}.items()}
    rows = [
        {"dataset": run.dataset, "model": run.model, "runs": 1, **cost(run, *sizes[run.dataset, run.model])}
        for run in study.runs
    ]
    table = pd.DataFrame(rows).groupby(["dataset", "model"], sort=False).sum()
    table.loc[("all", ""), :] = table.sum()
    columns = {"runs": table["runs"].astype(int)}
    for part in ("training", "AutoAttack <="):
        for device, rate in RATES.items():
            columns[f"{part} {device}"] = (table[part] / (rate * 1e12)).map(duration)
    columns["disk GB"] = (table["bytes"] / 1e9).map("{:.3g}".format)
    rates = " and ".join(f"{rate:g} TFLOP/s {device}" for device, rate in RATES.items())
    whole = table.loc[("all", ""), ["training", "AutoAttack <="]].sum()
    wall = " or ".join(f"{duration(whole / (rate * 1e12 * at_once))} {device}" for device, rate in RATES.items())
    several = f"; with {at_once} at a time, each {wall}" if at_once > 1 else ""
    return (
        f"{pd.DataFrame(columns).to_string()}\n"
        f"A guess, no measurement: floating-point operations counted on the networks, at {rates}, one run at a time"
        f"{several}. A GPU computes small networks far more slowly than that: it waits for the processor. "
        f"To measure it: snakemake --configfile {study.path} --config rehearse=true; then ask again."
    )
