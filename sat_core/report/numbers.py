"""The numbers behind tables and figures, from what exists: a run that failed, or is not made yet, is not in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from sat_core.runs import folder
from sat_core.runs.heartbeat import unfinished_history
from sat_core.runs.trivial import is_trivial
from sat_core.study import Run, RunId, Study
from sat_core.study.file import Table
from sat_core.study.reading import read_yaml

PAPER, OTHERS = (Path(__file__).with_name(name) for name in ("paper.yaml", "others.yaml"))
"""What the paper's authors have published, and what others have, with its sources."""
ADDRESS = ["model", "defense", "epsilon", "seed"]
AFTER = {"clean": "Clean", "apgd-ce": "APGD-CE", "apgd-t": "+ APGD-T", "fab-t": "+ FAB-T", "robust": "+ Square"}
"""Accuracies in the order in which AutoAttack wears them down, and their titles; after Square it is the robust one."""
SECONDS = {"apgd-ce": "apgd-ce", "apgd-t": "apgd-t", "fab-t": "fab-t", "robust": "square"}
"""The attack that took an accuracy to what it is."""
LAST = ["last_clean", "last_robust"]
COSTS = ("epoch_seconds", "steps", "steps_saved", "memory", "gpu_memory")


def results(study: Study, table: Table) -> pd.DataFrame:
    """One row a run of the table that has been evaluated.

    Columns: its address; accuracies in %, clean, after each attack, robust; ``n`` test images; whether it is trivial,
    and whether the epoch chosen is ``early``, before the run's method begins; the seconds that each attack took, and
    the device. Raises ConfigError if its files are damaged.
    """
    rows = [row for id in table.run_ids if (row := evaluated(study.run(id))) is not None]
    columns = [*ADDRESS, *AFTER, *(f"seconds_{attack}" for attack in SECONDS.values()), *LAST]
    columns += ["n", "trivial", "early", "flags", "external", "attacked", "version", "precision", "device"]
    columns += ["stale", "accepted"]
    return pd.DataFrame(rows, columns=columns)


def evaluated(run: Run) -> dict[str, Any] | None:
    """The row of one run, or None unless there is a verdict on the weights that it has now."""
    verdict = folder.judged(run)
    return None if verdict is None else row(run, *verdict)


def row(run: Run, summary: dict[str, Any], images: pd.DataFrame) -> dict[str, Any]:
    """The row of a run with this verdict, the summary and the images."""
    accuracies = {"clean": summary["clean"], **summary["after"], "robust": summary["robust"]}
    record = folder.record_of(run, "train") or {}
    return {
        **address(run),
        **{name: 100 * accuracies[name] for name in AFTER},
        **{f"seconds_{attack}": seconds for attack, seconds in summary["seconds"].items()},
        **{f"last_{name}": 100 * summary.get("last", {}).get(name, math.nan) for name in ("clean", "robust")},
        "n": summary["n"],
        "trivial": is_trivial(images),
        "flags": ", ".join(summary.get("flags", ())),
        "external": elsewhere(record),
        "attacked": record.get("attacked", run.base != "standard"),  # records of externals do not say
        "early": (record.get("best_epoch") or 0) < record.get("begins", 0),
        "version": summary.get("version", "standard"),
        "precision": summary.get("precision", "float32"),
        "device": summary["device"],
        **standing(run),
    }


def elsewhere(record: dict[str, Any]) -> str:
    """Where the weights of ``run.json`` are from, and what speaks against a verdict; "" if they were trained here."""
    if (about := record.get("external")) is None:
        return ""
    return "; ".join([f"{about['file']}, SHA-256 {about['weights'][:12]}", *about["doubts"]])


def standing(run: Run, stage: str = "evaluate") -> dict[str, Any]:
    """Why what a stage found is not of the present settings and code, "" if it is; and whether a user accepted it."""
    stages = dict.fromkeys(("train", stage))
    reasons = [reason for stage in stages for reason in folder.why_other(run, stage)]
    records = [folder.record_of(run, stage) or {} for stage in stages]
    return {"stale": "; ".join(dict.fromkeys(reasons)), "accepted": any("accepted" in record for record in records)}


def costs(study: Study, table: Table) -> pd.DataFrame:
    """One row a trained run of the table.

    Columns: its address; seconds an epoch, validation included; PGD steps a sample, and the share of them saved
    (%, NaN without PGD), both over the whole training; peak memory in MB; the device; and as :func:`standing`.
    """
    rows = []
    for run, record, history in trained(study, table):
        if run.external is not None:
            rows.append(address(run) | standing(run, "train") | {"device": record["device"]})
            continue
        memory, steps = record.get("peak_memory_mb", {}), history["steps"].mean()
        row = {
            "epoch_seconds": history["seconds"].mean(),
            "steps": steps,
            "steps_saved": 100 * (1 - steps / record["config"]["attack"]["steps"]) if steps else math.nan,
            "memory": memory.get("main", math.nan),
            "gpu_memory": memory.get("gpu", math.nan),
            "device": record["device"],
        }
        rows.append(address(run) | standing(run, "train") | row)
    return pd.DataFrame(rows, columns=[*ADDRESS, *COSTS, "device", "stale", "accepted"])


def histories(study: Study, table: Table) -> pd.DataFrame:
    """The training histories of the table's complete runs, one row an epoch, with the address of the run."""
    found = [(run, history) for run, _, history in trained(study, table) if run.external is None]
    frames = [history.assign(**address(run)) for run, history in found]
    return pd.concat(frames) if frames else pd.DataFrame(columns=ADDRESS)


def unfinished(study: Study, table: Table) -> pd.DataFrame:
    """As :func:`histories`, of the table's trainings that have begun and are not complete: the epochs so far."""
    begun = ((run, unfinished_history(run)) for run in map(study.run, table.run_ids))
    frames = [history.assign(**address(run)) for run, history in begun if len(history)]
    return pd.concat(frames) if frames else pd.DataFrame(columns=ADDRESS)


def trained(study: Study, table: Table) -> Iterator[tuple[Run, dict[str, Any], pd.DataFrame]]:
    """The table's complete runs, with their ``run.json`` and ``history.csv``, verified; raises ConfigError."""
    for run in map(study.run, table.run_ids):
        if (found := folder.trained(run)) is not None:
            yield run, *found


def address(run: Run | RunId) -> dict[str, Any]:
    """The columns that tell the runs of a table apart."""
    return {"model": run.model, "defense": run.defense, "epsilon": run.epsilon.text, "seed": run.seed}


def summarise(table: Table, rows: pd.DataFrame, measures: list[str]) -> pd.DataFrame:
    """Mean, sample standard deviation over seeds, and number of seeds, of every cell x measure of the table.

    A cell without runs has 0 seeds and no mean.
    """
    long = rows.melt(ADDRESS, measures, "measure").astype({"value": float})
    over_seeds = long.groupby([*ADDRESS[:3], "measure"], sort=False)["value"]
    cells = over_seeds.agg(["mean", "std"]).assign(seeds=over_seeds.size())
    epsilons = [epsilon.text for epsilon in table.epsilons]
    every = [(m, d, e, name) for m, d in table.rows for e in epsilons for name in measures]
    cells = cells.reindex(pd.MultiIndex.from_tuples(every, names=[*ADDRESS[:3], "measure"])).reset_index()
    return cells.fillna({"seeds": 0}).astype({"seeds": int})


def interval(mean: float, std: float, seeds: int, images: int) -> tuple[float, float]:
    """A 95 % interval of an accuracy, all in %, for what other test images and other seeds might have given.

    The seeds share their ``images``, so that more seeds do not make up for few images: the two errors are independent
    and add up. Their intervals are Wilson's for a share of ``images``, and Student's for the mean of ``seeds`` with
    sample standard deviation ``std``; the distances from the mean to the ends are combined as the root of the sum of
    squares (MOVER, Zou and Donner 2008). With one seed only the test images count, and it is Wilson's. Errs on the
    wide side, because ``std`` holds some of the test images' noise too: a test counts how often it holds the truth.
    """
    from scipy import stats  # takes a second, which whoever only needs the rows above does without

    share = stats.binomtest(round(mean / 100 * images), images).proportion_ci(0.95, "wilson")
    of_seeds = stats.t.ppf(0.975, seeds - 1) * std / math.sqrt(seeds) if seeds > 1 else 0.0
    low = mean - math.hypot(max(mean - 100 * share.low, 0), of_seeds)
    high = mean + math.hypot(max(100 * share.high - mean, 0), of_seeds)
    return max(low, 0.0), min(high, 100.0)


@cache
def published() -> dict[tuple[str, str, str, Fraction, str], dict[str, Any]]:
    """(dataset, model, defense, epsilon, accuracy) -> columns of the csv: the number in %, its source, if trivial."""
    numbers: dict[tuple[str, str, str, Fraction, str], dict[str, Any]] = {}
    for table in [*read_yaml(PAPER), *read_yaml(OTHERS)]:
        for epsilon, defenses in table["accuracy"].items():
            for defense, values in defenses.items():
                for name in values.keys() & AFTER.keys():
                    where = (table["dataset"], table["model"], defense, Fraction(epsilon), name)
                    number = {"published": values[name], "published_trivial": values.get("trivial", False)}
                    numbers.setdefault(where, number | {key: table[key] for key in ("label", "source")})
    return numbers
