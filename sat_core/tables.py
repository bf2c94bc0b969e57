"""The study's tables: accuracy in the paper's layout, accuracy after each attack, and cost. Needs no torch.

All are made from what exists: a run that failed, or has not been made yet, leaves a dash.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from sat_core.config import PARTS, Run, RunId, Study, Table, read_yaml
from sat_core.files import atomic, read_json, verify
from sat_core.render import MISSING, TRIVIAL, Cell, Sheet, as_html, latex, markdown
from sat_core.trivial import is_trivial

PAPER = Path(__file__).with_name("paper.yaml")
"""What others have published, with its sources."""
ADDRESS = ["model", "defense", "epsilon", "seed"]
AFTER = {"clean": "Clean", "apgd-ce": "APGD-CE", "apgd-t": "+ APGD-T", "fab-t": "+ FAB-T", "robust": "+ Square"}
"""Accuracies in the order in which AutoAttack wears them down, and their titles; after Square it is the robust one."""
SECONDS = {"apgd-ce": "apgd-ce", "apgd-t": "apgd-t", "fab-t": "fab-t", "robust": "square"}
"""The attack that took an accuracy to what it is."""
COST = {
    "epoch_seconds": ("Epoch (s)", "{:.2f}"),
    "steps": ("PGD steps", "{:.2f}"),
    "steps_saved": ("Steps saved (%)", "{:.1f}"),
    "memory": ("Memory (MB)", "{:.0f}"),
    "gpu_memory": ("GPU memory (MB)", "{:.0f}"),
}
MOST_COLUMNS = 6
"""Legible across a page."""


def results(study: Study, table: Table) -> pd.DataFrame:
    """One row a run of the table that has been evaluated.

    Columns: its address; accuracies in %, clean, after each attack, robust; ``n`` test images; whether it is trivial;
    the seconds that each attack took, and the device. Raises ConfigError if its files are damaged.
    """
    rows = [row for id in table.run_ids if (row := evaluated(study.run(id))) is not None]
    columns = [*ADDRESS, *AFTER, *(f"seconds_{attack}" for attack in SECONDS.values()), "n", "trivial", "device"]
    return pd.DataFrame(rows, columns=columns)


def evaluated(run: Run) -> dict[str, Any] | None:
    """The row of one run, or None unless there is a verdict on the weights that it has now."""
    if not all((run.folder / name).exists() for name in ("run.json", "autoattack.json")):
        return None
    record, summary = read_json(run.folder / "run.json"), read_json(run.folder / "autoattack.json")
    if summary.get("weights") != record["files"]["model.safetensors"]:
        return None
    for name, expected in summary["files"].items():
        verify(run.folder / name, expected, "delete it and run `evaluate` again")
    images = pd.read_csv(run.folder / "autoattack.csv", keep_default_na=False)
    accuracies = {"clean": summary["clean"], **summary["after"], "robust": summary["robust"]}
    return {
        **address(run),
        **{name: 100 * accuracies[name] for name in AFTER},
        **{f"seconds_{attack}": seconds for attack, seconds in summary["seconds"].items()},
        "n": summary["n"],
        "trivial": is_trivial(images),
        "device": summary["device"],
    }


def costs(study: Study, table: Table) -> pd.DataFrame:
    """One row a trained run of the table.

    Columns: its address; seconds an epoch, validation included; PGD steps a sample, and the share of them saved
    (%, NaN without PGD), both over the whole training; peak memory in MB; the device.
    """
    rows = []
    for run, record, history in trained(study, table):
        memory, steps = record.get("peak_memory_mb", {}), history["steps"].mean()
        row = {
            "epoch_seconds": history["seconds"].mean(),
            "steps": steps,
            "steps_saved": 100 * (1 - steps / record["config"]["attack"]["steps"]) if steps else math.nan,
            "memory": memory.get("main", math.nan),
            "gpu_memory": memory.get("gpu", math.nan),
            "device": record["device"],
        }
        rows.append(address(run) | row)
    return pd.DataFrame(rows, columns=[*ADDRESS, *COST, "device"])


def histories(study: Study, table: Table) -> pd.DataFrame:
    """The training histories of the table's complete runs, one row an epoch, with the address of the run."""
    frames = [history.assign(**address(run)) for run, _, history in trained(study, table)]
    return pd.concat(frames) if frames else pd.DataFrame(columns=ADDRESS)


def trained(study: Study, table: Table) -> Iterator[tuple[Run, dict[str, Any], pd.DataFrame]]:
    """The table's complete runs, with their ``run.json`` and ``history.csv``, verified; raises ConfigError."""
    for run in map(study.run, table.run_ids):
        if (run.folder / "run.json").exists():
            record, path = read_json(run.folder / "run.json"), run.folder / "history.csv"
            verify(path, record["files"][path.name], "run `train` again, which takes it from the checkpoint")
            yield run, record, pd.read_csv(path)


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
    every = [(m, d, e, name) for m in table.models for d in table.defenses for e in epsilons for name in measures]
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
    for table in read_yaml(PAPER):
        for epsilon, defenses in table["accuracy"].items():
            for defense, values in defenses.items():
                for name in values.keys() & AFTER.keys():
                    where = (table["dataset"], table["model"], defense, Fraction(epsilon), name)
                    number = {"published": values[name], "published_trivial": values.get("trivial", False)}
                    numbers.setdefault(where, number | {key: table[key] for key in ("label", "source")})
    return numbers


def accuracy_cells(table: Table, rows: pd.DataFrame) -> pd.DataFrame:
    """The csv behind the accuracies: one row a cell and accuracy, in %, with what has been published about it."""
    cells = summarise(table, rows, list(AFTER)).rename(columns={"measure": "accuracy"})
    shared = rows.groupby(ADDRESS[:3], as_index=False).agg(trivial_seeds=("trivial", "sum"), test_images=("n", "first"))
    cells = cells.merge(shared, "left", ADDRESS[:3])
    for column in ("trivial_seeds", "test_images"):
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
    made = main_sheet(table, data, rows), attacks_sheet(table, data, rows), cost_sheet(table, costs(study, table))
    return {f"{name}{part}": sheet for part, sheet in zip(PARTS, made, strict=True)}


def main_sheet(table: Table, data: pd.DataFrame, rows: pd.DataFrame) -> Sheet:
    """The paper's layout: defenses below each other, models x epsilons x (Clean, Robust) side by side.

    Models that would make it too wide are below each other, too.
    """
    data = data[data["accuracy"].isin(["clean", "robust"])]
    shown = data["mean"].round(2).where(data["trivial_seeds"].eq(0).fillna(False).astype(bool))
    best = shown.eq(shown.groupby([data["model"], data["epsilon"], data["accuracy"]]).transform("max"))
    columns = pd.MultiIndex.from_product([[f"ε = {e}" for e in table.epsilons], ["Clean", "Robust"]])
    cells = frame(pd.MultiIndex.from_product([table.models, table.defenses]), columns)
    for cell, is_best in zip(data.itertuples(), best, strict=True):
        below = {"95 %": f"[{cell.low:.1f}, {cell.high:.1f}]"} if cell.seeds else {}
        if 0 < cell.seeds < len(table.seeds):
            below["seeds"] = str(cell.seeds)
        content = number(cell, "{:.2f}", below | beside(cell), bool(is_best))
        cells.at[(cell.model, cell.defense), (f"ε = {cell.epsilon}", cell.accuracy.title())] = content
    if 1 < len(table.models) <= MOST_COLUMNS / len(columns):
        cells = pd.concat({model: cells.loc[model] for model in table.models}, axis=1)
    else:
        cells = without_one_model(table, cells)
    origin = "the test images" if len(table.seeds) == 1 else "test images and seeds"
    note = [
        about(table, rows, f"Robust: AutoAttack (standard, L∞); {over_seeds(table)}."),
        f"95 %: interval from {origin}. Bold: the best defense, trivial runs aside.",
        f"{TRIVIAL} at least one seed ended as a trivial classifier: constant, or no better than a constant.",
        missing(table, rows),
        sources(data),
    ]
    return Sheet(cells, " ".join(filter(None, note)), data)


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
        about(table, rows, f"After each attack of AutoAttack (standard, L∞) in turn; {over_seeds(table)}."),
        f"Seconds: on {devices(rows)}, the mean over seeds; below an accuracy those of its attack, which meets only",
        "the images that are still standing.",
        f"{TRIVIAL} at least one seed is trivial.",
        missing(table, rows),
        sources(data),
    ]
    return Sheet(without_one_model(table, cells), " ".join(filter(None, note)), data)


def cost_sheet(table: Table, rows: pd.DataFrame) -> Sheet:
    """What training took."""
    measures = [name for name in COST if name != "gpu_memory" or rows[name].notna().any()]
    data = summarise(table, rows, measures)
    cells = frame(long_index(table), pd.Index([COST[name][0] for name in measures]))
    for cell in data[data["seeds"] > 0].itertuples():
        title, form = COST[cell.measure]
        content = Cell("n/a") if math.isnan(cell.mean) else number(cell, form)
        cells.at[(cell.model, f"ε = {cell.epsilon}", cell.defense), title] = content
    note = [
        f"{table.caption} Cost of training on {devices(rows)}; {over_seeds(table)}.",
        "Epoch: validation included. PGD steps a sample, over the whole training, and the share of the attack's steps",
        "that stopping samples early has saved; n/a: no attack. Memory: the process's peak.",
        missing(table, rows),
    ]
    return Sheet(without_one_model(table, cells), " ".join(filter(None, note)).strip(), data)


def frame(index: pd.Index, columns: pd.Index) -> pd.DataFrame:
    """Missing cells everywhere."""
    return pd.DataFrame(Cell(), index=index, columns=columns, dtype=object)


def long_index(table: Table) -> pd.MultiIndex:
    """Rows of the tables in which epsilons, too, are below each other."""
    epsilons = [f"ε = {epsilon}" for epsilon in table.epsilons]
    return pd.MultiIndex.from_product([table.models, epsilons, table.defenses])


def without_one_model(table: Table, cells: pd.DataFrame) -> pd.DataFrame:
    """A model that all rows share is named in the note."""
    return cells.droplevel(0) if len(table.models) == 1 else cells


def number(cell: Any, form: str, below: dict[str, str] | None = None, best: bool = False) -> Cell:
    """A :class:`Cell` from a row of :func:`summarise`."""
    if not cell.seeds:
        return Cell(below=below or {})
    spread = "" if math.isnan(cell.std) else form.format(cell.std)
    return Cell(form.format(cell.mean), spread, below or {}, best, bool(getattr(cell, "trivial_seeds", 0)))


def beside(cell: Any) -> dict[str, str]:
    """The published number, and in brackets what ours has more."""
    if math.isnan(cell.published):
        return {}
    more = "" if math.isnan(cell.difference) else f" ({cell.difference:+.2f})".replace("-", "−")
    return {cell.label: f"{cell.published:.2f}{f' {TRIVIAL}' if cell.published_trivial else ''}{more}"}


def about(table: Table, rows: pd.DataFrame, how: str) -> str:
    """What was measured."""
    images = "/".join(str(n) for n in sorted(set(rows["n"]))) or "no"
    models = f"model{'s' * (len(table.models) > 1)} {', '.join(table.models)}"
    return f"{table.caption} Accuracy in % on {images} test images of {table.dataset}, {models}. {how}".strip()


def devices(rows: pd.DataFrame) -> str:
    """What the runs ran on."""
    return ", ".join(sorted(set(rows["device"]))) or "no device yet"


def over_seeds(table: Table) -> str:
    """How many numbers are behind one."""
    return "1 seed" if len(table.seeds) == 1 else f"mean ± standard deviation over {len(table.seeds)} seeds"


def missing(table: Table, rows: pd.DataFrame) -> str:
    """How many runs the table still lacks, or nothing."""
    lacking, all_ = len(table.run_ids) - len(rows), len(table.run_ids)
    return f"{lacking} of {all_} runs {'is' if lacking == 1 else 'are'} missing, marked {MISSING}." if lacking else ""


def sources(data: pd.DataFrame) -> str:
    """Where the published numbers come from, or nothing."""
    known = data.dropna(subset=["label"])[["label", "source"]].drop_duplicates()
    told = [f"{label.capitalize()} (in brackets: ours minus it): {source}." for label, source in known.values]
    return " ".join(told)


def write_table(study: Study, name: str) -> list[Path]:
    """Write ``tables/<name>``, ``<name>-attacks`` and ``<name>-cost``, each as csv, md, tex and html, from the results
    there are; returns the paths of the markdown files."""
    written = []
    for title, sheet in sheets(study, name).items():
        path = study.folder / "tables" / title
        content = {
            "csv": sheet.data.to_csv(index=False, float_format="%.8g"),
            "tex": latex(sheet, title),
            "html": as_html(sheet, title),
            "md": markdown(sheet),
        }
        for suffix, text in content.items():
            with atomic(path.with_name(f"{title}.{suffix}")) as file:
                file.write(text)
        written.append(path.with_name(f"{title}.md"))
    return written
