"""The study's tables: accuracy, accuracy after each attack, and cost; and the works that they cite.

All are made from what exists: a run that failed, or has not been made yet, leaves a dash.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd

from sat_core.report import notes
from sat_core.report.latex import latex
from sat_core.report.numbers import ADDRESS, AFTER, SECONDS, costs, interval, published, results, summarise
from sat_core.report.references import references
from sat_core.report.render import TRIVIAL, Cell, Sheet, as_html, markdown
from sat_core.runs.files import atomic
from sat_core.study import Study
from sat_core.study.file import PARTS, Table

COST = {
    "epoch_seconds": ("Epoch (s)", "{:.2f}"),
    "steps": ("PGD steps", "{:.2f}"),
    "steps_saved": ("Steps saved (%)", "{:.1f}"),
    "memory": ("Memory (MB)", "{:.0f}"),
    "gpu_memory": ("GPU memory (MB)", "{:.0f}"),
}
MOST_COLUMNS = 6
"""Legible across a page."""


def accuracy_cells(table: Table, rows: pd.DataFrame) -> pd.DataFrame:
    """The csv behind the accuracies: one row a cell and accuracy, in %, with what has been published about it."""
    cells = summarise(table, rows, list(AFTER)).rename(columns={"measure": "accuracy"})
    shared = rows.groupby(ADDRESS[:3], as_index=False).agg(
        trivial_seeds=("trivial", "sum"),
        test_images=("n", "min"),
        stale_seeds=("stale", lambda of: of.ne("").sum()),
        external=("external", "first"),
    )
    cells = cells.merge(shared, "left", ADDRESS[:3])
    last = [
        rows.assign(more=rows[f"last_{name}"] - rows[name])  # of the seeds that have both
        .groupby(ADDRESS[:3], as_index=False)
        .agg(last=(f"last_{name}", "mean"), last_difference=("more", "mean"), last_seeds=(f"last_{name}", "count"))
        .assign(accuracy=name)
        for name in ("clean", "robust")
    ]
    cells = cells.merge(pd.concat(last), "left", [*ADDRESS[:3], "accuracy"])
    for column in ("trivial_seeds", "stale_seeds", "test_images", "last_seeds"):
        cells[column] = pd.to_numeric(cells[column]).astype("Int64")
    ends = [
        interval(cell.mean, cell.std, cell.seeds, cell.test_images) if cell.seeds else (math.nan, math.nan)
        for cell in cells[["mean", "std", "seeds", "test_images"]].itertuples(index=False)
    ]
    cells[["low", "high"]] = pd.DataFrame(ends, index=cells.index)
    found = [
        published().get((table.dataset, cell.model, cell.defense, Fraction(cell.epsilon), cell.accuracy), {})
        for cell in cells.itertuples()
    ]
    for column in ("published", "label", "source", "published_trivial"):
        cells[column] = [number.get(column) for number in found]
    cells["published"] = cells["published"].astype(float)
    cells["difference"] = cells["mean"] - cells["published"]
    return cells


def sheets(study: Study, name: str) -> dict[str, Sheet]:
    """The tables that are written for one table of the study, by file name."""
    table = study.file.tables[name]
    rows = results(study, table)
    data = accuracy_cells(table, rows)
    made: Iterable[Sheet] = (
        paper_sheet(study, table, data, rows) if table.style == "paper" else main_sheet(study, table, data, rows),
        attacks_sheet(table, data, rows),
        cost_sheet(table, costs(study, table)),
    )
    names = {defense: study.display(defense) for defense in table.defenses}
    named = [replace(sheet, cells=sheet.cells.rename(index=names)) for sheet in made]
    return {f"{name}{part}": sheet for part, sheet in zip(PARTS, named, strict=True)}


def main_sheet(study: Study, table: Table, data: pd.DataFrame, rows: pd.DataFrame) -> Sheet:
    """Defenses below each other, models x epsilons x (Clean, Robust) side by side, with all that is known of each.

    Models that would make it too wide are below each other, too.
    """
    data = data[data["accuracy"].isin(["clean", "robust"])]
    columns = pd.MultiIndex.from_product([[f"ε = {e}" for e in table.epsilons], ["Clean", "Robust"]])
    cells = frame(pd.MultiIndex.from_tuples(table.rows), columns)
    for cell, is_best in zip(data.itertuples(), best(rows, data), strict=True):
        below = {"95 %": f"[{cell.low:.1f}, {cell.high:.1f}]"} if cell.seeds else {}
        if not math.isnan(cell.last):
            few = f", {cell.last_seeds} of {cell.seeds} seeds" if cell.last_seeds < cell.seeds else ""
            below["last epoch"] = f"{cell.last:.2f} ({cell.last_difference:+.2f}{few})".replace("-", "−")
        if 0 < cell.seeds < len(table.seeds):
            below["seeds"] = str(cell.seeds)
        content = number(cell, "{:.2f}", below | beside(cell), is_best)
        cells.at[(cell.model, cell.defense), (f"ε = {cell.epsilon}", cell.accuracy.title())] = content
    has_holes = len(table.rows) < len(table.networks) * len(table.defenses)
    if 1 < len(table.networks) <= MOST_COLUMNS / len(columns) and not has_holes:
        cells = pd.concat({model: cells.loc[model] for model in table.networks}, axis=1)
    else:
        cells = without_one_model(table, cells)
    origin = "other test images" if len(table.seeds) == 1 else "other test images and other seeds"
    note = [
        notes.about(
            table, rows, f"Robust is the accuracy under AutoAttack (standard, L∞). {notes.over_seeds(table, rows)}"
        ),
        f"Below each stands its 95 % interval, for {origin}.",
        *notes.reading(table, rows),
        notes.doubts(rows),
        notes.externals(rows),
        notes.sources(data),
    ]
    return Sheet(cells, " ".join(filter(None, note)), data)


def paper_sheet(study: Study, table: Table, data: pd.DataFrame, rows: pd.DataFrame) -> Sheet:
    """The paper's layout, to be laid over its tables: means alone, (Clean, Adv) side by side for each epsilon."""
    data = data[data["accuracy"].isin(["clean", "robust"])]
    columns = pd.MultiIndex.from_product([[f"ε = {e}" for e in table.epsilons], ["Clean", "Adv"]])
    cells = frame(pd.MultiIndex.from_tuples(table.rows), columns)
    for cell, is_best in zip(data.itertuples(), best(rows, data), strict=True):
        title = "Clean" if cell.accuracy == "clean" else "Adv"
        content = replace(number(cell, "{:.2f}", best=is_best), spread="")
        cells.at[(cell.model, cell.defense), (f"ε = {cell.epsilon}", title)] = content
    mean = "" if len(table.seeds) == 1 else f" Each number is the mean over {notes.seeds(table, rows)}."
    note = [
        notes.about(table, rows, f"Adv is the accuracy under AutoAttack (standard, L∞).{mean}"),
        *notes.reading(table, rows),
    ]
    return Sheet(without_one_model(table, cells), " ".join(filter(None, note)), data)


def best(rows: pd.DataFrame, data: pd.DataFrame) -> list[bool]:
    """Whether a cell is the best of its column among what is printed of defenses that train on attacked images and
    have no trivial seed."""
    cells = pd.MultiIndex.from_frame(data[ADDRESS[:3]])
    rivals = ~cells.isin(pd.MultiIndex.from_frame(rows[~rows["attacked"].astype(bool)][ADDRESS[:3]]))
    shown = data["mean"].round(2).where(data["trivial_seeds"].eq(0).fillna(False).astype(bool) & rivals)
    return shown.eq(shown.groupby([data["model"], data["epsilon"], data["accuracy"]]).transform("max")).tolist()


def attacks_sheet(table: Table, data: pd.DataFrame, rows: pd.DataFrame) -> Sheet:
    """Accuracy after each attack of AutoAttack, and below it the seconds that the attack took."""
    seconds = summarise(table, rows, [f"seconds_{attack}" for attack in SECONDS.values()])
    seconds = seconds.set_index([*ADDRESS[:3], "measure"])["mean"]
    data = data.assign(
        seconds=[
            seconds.get((cell.model, cell.defense, cell.epsilon, f"seconds_{SECONDS.get(cell.accuracy)}"), math.nan)
            for cell in data.itertuples()
        ]
    )
    cells = frame(long_index(table), pd.Index([*AFTER.values(), "Seconds"]))
    for cell in data.itertuples():
        row = cell.model, f"ε = {cell.epsilon}", cell.defense
        below = {} if math.isnan(cell.seconds) else {"seconds": f"{cell.seconds:.1f}"}
        cells.at[row, AFTER[cell.accuracy]] = number(cell, "{:.2f}", below | beside(cell))
    for (model, defense, epsilon), total in seconds.groupby(level=[0, 1, 2], sort=False).sum(min_count=1).items():
        if not math.isnan(total):
            cells.at[(model, f"ε = {epsilon}", defense), "Seconds"] = Cell(f"{total:.1f}")
    note = [
        notes.about(
            table,
            rows,
            f"Each column is after one more attack of AutoAttack (standard, L∞). {notes.over_seeds(table, rows)}",
        ),
        f"Below an accuracy stand the seconds of its attack on {notes.devices(rows)}, the mean over seeds; an attack",
        "meets only the images that are still standing.",
        f"{TRIVIAL} (red): at least one seed ended as a trivial classifier.",
        notes.missing(table, rows),
        notes.standing(rows),
        notes.precisions(rows),
        notes.sources(data),
    ]
    return Sheet(without_one_model(table, cells), " ".join(filter(None, note)), data)


def cost_sheet(table: Table, rows: pd.DataFrame) -> Sheet:
    """What training took."""
    measures = [name for name in COST if name != "gpu_memory" or rows[name].notna().any()]
    stale = rows.groupby(ADDRESS[:3], as_index=False).agg(stale_seeds=("stale", lambda of: of.ne("").sum()))
    data = summarise(table, rows, measures).merge(stale, "left", ADDRESS[:3])
    data["stale_seeds"] = pd.to_numeric(data["stale_seeds"]).astype("Int64")
    cells = frame(long_index(table), pd.Index([COST[name][0] for name in measures]))
    for cell in data[data["seeds"] > 0].itertuples():
        title, form = COST[cell.measure]
        content = Cell("n/a") if math.isnan(cell.mean) else number(cell, form)
        cells.at[(cell.model, f"ε = {cell.epsilon}", cell.defense), title] = content
    no_cost = "no attack, or not trained here" if table.has_externals else "no attack"
    note = [
        f"{notes.caption(table)} Cost of training on {notes.devices(rows)}. {notes.over_seeds(table, rows)}",
        "An epoch includes its validation. PGD steps are those of a sample, over the whole training; what is saved is",
        f"the share of the attack's steps that stopping samples early has saved (n/a: {no_cost}). Memory is the "
        "peak of the process.",
        notes.missing(table, rows),
        notes.standing(rows),
    ]
    return Sheet(without_one_model(table, cells), " ".join(filter(None, note)).strip(), data)


def frame(index: pd.Index, columns: pd.Index) -> pd.DataFrame:
    """Missing cells everywhere."""
    return pd.DataFrame(Cell(), index=index, columns=columns, dtype=object)


def long_index(table: Table) -> pd.MultiIndex:
    """Rows of the tables in which epsilons, too, are below each other."""
    epsilons = [f"ε = {epsilon}" for epsilon in table.epsilons]
    every = [(model, e, defense) for e in epsilons for model, defense in table.rows]
    return pd.MultiIndex.from_tuples(sorted(every, key=lambda row: table.networks.index(row[0])))


def without_one_model(table: Table, cells: pd.DataFrame) -> pd.DataFrame:
    """A model that all rows share is named in the note."""
    return cells.droplevel(0) if len(table.networks) == 1 else cells


def number(cell: Any, form: str, below: dict[str, str] | None = None, best: bool = False) -> Cell:
    """A :class:`Cell` from a row of :func:`summarise`."""
    if not cell.seeds:
        return Cell(below=below or {})
    spread = "" if math.isnan(cell.std) else form.format(cell.std)
    trivial, stale = (bool(getattr(cell, name, 0)) for name in ("trivial_seeds", "stale_seeds"))
    return Cell(form.format(cell.mean), spread, below or {}, best, trivial, stale)


def beside(cell: Any) -> dict[str, str]:
    """The published number, and in brackets what ours has more."""
    if math.isnan(cell.published):
        return {}
    more = "" if math.isnan(cell.difference) else f" ({cell.difference:+.2f})".replace("-", "−")
    return {cell.label: f"{cell.published:.2f}{f' {TRIVIAL}' if cell.published_trivial else ''}{more}"}


def write_table(study: Study, name: str) -> list[Path]:
    """Write ``tables/<name>``, ``<name>-attacks`` and ``<name>-cost``, each as csv, md, tex and html, from the results
    there are, and ``tables/references.bib``; returns the paths of the markdown files."""
    with atomic(study.folder / "tables/references.bib") as file:
        file.write(references(study))
    return [write_sheet(study, title, sheet) for title, sheet in sheets(study, name).items()]


def write_sheet(study: Study, title: str, sheet: Sheet) -> Path:
    """Write one table in every form; returns the path of the markdown file."""
    path = study.folder / "tables" / title
    sheet = replace(sheet, note=f"{notes.NO_RESULT} {sheet.note}") if study.file.rehearses else sheet
    content = {
        "csv": sheet.data.to_csv(index=False, float_format="%.8g"),
        "tex": latex(sheet, f"{study.name}-{title}"),
        "html": as_html(sheet, title),
        "md": markdown(sheet),
    }
    for suffix, text in content.items():
        with atomic(path.with_name(f"{title}.{suffix}")) as file:
            file.write(text)
    return path.with_name(f"{title}.md")
