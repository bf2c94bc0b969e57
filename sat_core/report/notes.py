"""What must be known beside a table, in sentences."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd

from sat_core.report.render import MISSING, STALE, TRIVIAL
from sat_core.study.file import Table

NO_RESULT = "A rehearsal, AutoAttack cut short: no result."
TOLD = 2
"""Runs of other settings or code of which the note says why; a caption in LaTeX cannot be longer than a page."""
FEWER = 6
"""Cells with fewer seeds than they are to have, of which the note says how many there are."""


def about(table: Table, rows: pd.DataFrame, how: str) -> str:
    """What was measured."""
    images = "/".join(str(n) for n in sorted(set(rows["n"]))) or "no"
    models = f"model{'s' * (len(table.networks) > 1)} {', '.join(table.networks)}"
    return f"{caption(table)} Accuracy in % on {images} test images of {table.dataset}, {models}. {how}".strip()


def caption(table: Table) -> str:
    """What the study says of the table, as a sentence."""
    return f"{table.caption.rstrip(' .')}." if table.caption else ""


def over_seeds(table: Table, rows: pd.DataFrame) -> str:
    """How many numbers are behind one."""
    one = len(table.seeds) == 1
    return f"Each number is of {'one seed' if one else f'{seeds(table, rows)}: mean ± standard deviation'}."


def seeds(table: Table, rows: pd.DataFrame) -> str:
    """How many a cell has; :func:`missing` says which have fewer."""
    return f"{'up to ' * (len(rows) < len(table.run_ids))}{len(table.seeds)} seeds"


def devices(rows: pd.DataFrame) -> str:
    """What the runs ran on."""
    return ", ".join(sorted(set(rows["device"]))) or "no device yet"


def reading(table: Table, rows: pd.DataFrame) -> list[str]:
    """What bold, red and dashes mean."""
    ordinary = " and training without an attack" if not rows["attacked"].all() else ""
    several = " for its network" if len(table.networks) > 1 else ""
    trivial = "at least one seed ended" if len(table.seeds) > 1 else "training ended"
    return [
        f"Bold is the best of a column{several}, trivial classifiers{ordinary} aside.",
        f"{TRIVIAL} (red): {trivial} as a trivial classifier, which is constant, or no better than a constant.",
        early(rows),
        missing(table, rows),
        standing(rows),
        precisions(rows),
    ]


def early(rows: pd.DataFrame) -> str:
    """Which networks were chosen before the epoch from which on they are what their row says, or nothing."""
    told = [one_run(a, rows) for a in rows[rows["early"].astype(bool)].itertuples()]
    begun = "its method's weights, perturbation or averages begin, and so without them"
    return f"Selected in an epoch before {begun}: {'; '.join(told)}." if told else ""


def missing(table: Table, rows: pd.DataFrame) -> str:
    """How many runs the table still lacks, or nothing."""
    lacking, all_ = len(table.run_ids) - len(rows), len(table.run_ids)
    if not lacking:
        return ""
    asked = Counter((id.model, id.defense, id.epsilon.text) for id in table.run_ids)
    there = Counter(zip(rows["model"], rows["defense"], rows["epsilon"], strict=True))
    fewer = [cell for cell in asked if 0 < there[cell] < asked[cell]]
    model = len(table.networks) > 1
    told = [f"{f'{m}, ' * model}{d}, ε = {e} ({there[m, d, e]} of {asked[m, d, e]})" for m, d, e in fewer[:FEWER]]
    told += [f"and {len(fewer) - FEWER} more"] if len(fewer) > FEWER else []
    holes = f", marked {MISSING}" if any(not there[cell] for cell in asked) else ""
    said = f"{lacking} of {all_} runs {'is' if lacking == 1 else 'are'} missing{holes}."
    return f"{said} Cells of fewer seeds: {'; '.join(told)}." if told else said


def one_run(run: Any, rows: pd.DataFrame) -> str:
    """A row's run, with its model where the rows are of several."""
    model = f"{run.model}, " if rows["model"].nunique() > 1 else ""
    return f"{model}{run.defense}, ε = {run.epsilon}, seed {run.seed}"


def standing(rows: pd.DataFrame) -> str:
    """Which runs are of other settings or code than the present, and which a user accepted so; or nothing."""
    other = rows[rows["stale"].ne("")]
    told = [f"{one_run(a, rows)} ({a.stale})" for a in other.head(TOLD).itertuples()]
    told += [f"and {len(other) - TOLD} more"] if len(other) > TOLD else []
    text = f"{STALE} of other settings or code than the present: {'; '.join(told)}." if told else ""
    accepted = int(rows["accepted"].astype(bool).sum())
    return f"{text} {accepted} runs were accepted under later code: see run.json.".strip() if accepted else text


def precisions(rows: pd.DataFrame) -> str:
    """What networks computed in while they were judged, unless all did in float32."""
    used = rows[rows["precision"].ne("float32")].groupby("precision", sort=True)["defense"].count()
    told = [f"{count} of {len(rows)} runs in {precision}" for precision, count in used.items()]
    return f"Judged {', '.join(told)}, not float32." if told else ""


def externals(rows: pd.DataFrame) -> str:
    """Which rows were not trained here, and where their weights are from; or nothing."""
    found = rows[rows["external"].ne("")].drop_duplicates("defense")
    told = [f"{a.defense} ({a.external})" for a in found.itertuples()]
    return f"External: not trained here, judged as they are: {'; '.join(told)}." if told else ""


def doubts(rows: pd.DataFrame) -> str:
    """What AutoAttack itself warns of, or nothing."""
    flagged = rows[rows["flags"].ne("")]
    told = [f"{one_run(a, rows)} ({a.flags})" for a in flagged.itertuples()]
    return f"AutoAttack warns that it may be too kind to: {'; '.join(told)}." if told else ""


def sources(data: pd.DataFrame) -> str:
    """Where the published numbers come from, or nothing."""
    known = data.dropna(subset=["label"])[["label", "source"]].drop_duplicates()
    told = [
        f"“{label}” has published numbers, and in brackets ours minus them: {source}." for label, source in known.values
    ]
    return " ".join(told)
