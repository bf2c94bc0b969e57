"""Write this folder's csv files and pictures from the results of the studies, and its page from them: `make evidence`.

What is finished is added: a run of which there is nothing in `results/` keeps the rows that it has here, unless the
study's settings for it are others by now. `--check` changes nothing, and fails if the page is not what the csv files
beside it give, or if they have runs of other settings than the studies have.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from claims import (
    CODES,
    FILES,
    HERE,
    MARGIN,
    NOTHING,
    RUN,
    Evidence,
    fisher,
    interval,
    key,
    median,
    middle,
    p_value,
    read,
    settings_of,
    share,
    stands,
    where,
)
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from docs.pictures import shrink
from sat_core.errors import ConfigError
from sat_core.report.comparisons import signed
from sat_core.report.figures.accuracy import OURS, PLANE, plane
from sat_core.report.figures.curvature import measured, ways
from sat_core.report.figures.style import rc
from sat_core.report.numbers import LAST, costs, evaluated, histories
from sat_core.runs import folder
from sat_core.runs.files import atomic
from sat_core.study import Run, Study
from sat_core.study.file import Table

SECTION = re.compile("(?<=<!-- evidence -->\n).*(?=<!-- end of evidence -->)", re.DOTALL)
"""What of a page is written here, where it is not all of it."""
TABLES = {
    "mnist": ("mnist-small", "mnist-small", ("mnist", "cnn")),
    "smallcnn": ("mnist-small", "mnist-small-trades", ("mnist", "cnn")),
    "cifar": ("cifar10-small", "cifar10-small", None),
    "digits": ("demo-evidence", "digits", None),
}
"""What the page calls a table -> its study, its name there, and where the paper has its like."""
PAGES = {"README.md.jinja": HERE / "README.md", "section.md.jinja": HERE.parents[1] / "README.md"}
PICTURES = ("landscape",)
WIDTH = 1400


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is not what the csv give")
    check = parser.parse_args().check
    studies = {title: Study(f"config/{study}.yaml") for title, (study, _, _) in TABLES.items()}
    if not check:
        for title, (_, table, _) in TABLES.items():
            collect(studies[title], table)
    tables = {title: Evidence(studies[title], table, paper) for title, (_, table, paper) in TABLES.items()}
    if not check:
        for evidence in tables.values():
            if len(evidence.trained(*evidence.table.defenses)) > 1:
                draw(evidence)
    if others := [f"{e.name}: {run}" for e in tables.values() for run in of_other_settings(e)]:
        sys.exit(f"error: of other settings than the study has now: {', '.join(others)}")
    for template, page in PAGES.items():
        text = rendered(template, tables)
        old = page.read_text(encoding="utf-8")
        new = text if page.parent == HERE else SECTION.sub(lambda _, text=text: text, old)
        if not check:
            with atomic(page) as file:
                file.write(new)
        elif new != old:
            sys.exit(f"error: {page} is not what the csv files give: python docs/evidence/refresh.py")


def collect(study: Study, name: str) -> None:
    """A table's csv files, with the runs that `results/` has; and the pictures that the pipeline drew."""
    table, here = study.file.tables[name], HERE / study.name
    here.mkdir(exist_ok=True)
    known = {key(id): id for id in table.run_ids}
    judged = {one: row for one, id in known.items() if (row := evaluated(study.run(id))) is not None}
    runs = {one: study.run(known[one]) for one in judged}
    new = {
        "runs": provenance(study, table, runs, judged),
        "history": histories(study, table).drop(columns=["seconds", "model"], errors="ignore"),
        "curvature": measured(study, table).drop(columns="model"),
        "verdicts": pd.DataFrame([[*one, letters(run)] for one, run in runs.items()], columns=[*RUN, "letters"]),
    }
    has_old = (here / f"{name}-runs.csv").exists()
    if not judged and not has_old:
        sys.exit(f"error: nothing of {study.path} is finished: snakemake --configfile {study.path} first")
    old = {kind: read(here, name, kind) if has_old else new[kind].iloc[:0] for kind in FILES}
    settings = zip(keys(old["runs"]), old["runs"].get("settings", []), strict=True)
    kept = {one for one, made in settings if one in known and made == settings_of(study, known[one])}
    for kind in FILES:
        parts = [of(old[kind], kept - judged.keys()), of(new[kind], judged.keys())]
        frame = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
        place = pd.Series(keys(frame)).map({one: i for i, one in enumerate(known)})
        with atomic(here / f"{name}-{kind}.csv") as file:
            frame.iloc[place.argsort(kind="stable")].to_csv(file, index=False, float_format="%.6g")
    for kind in PICTURES:
        if (picture := study.folder / "figures" / f"{name}-{kind}.png").exists():
            shrink(picture, here / picture.name, WIDTH)


def keys(rows: pd.DataFrame) -> list[tuple[str, str, int]]:
    """Defense, epsilon and seed of each row."""
    return list(rows[RUN].itertuples(index=False, name=None))


def of(rows: pd.DataFrame, runs: Collection[tuple[str, str, int]]) -> pd.DataFrame:
    """The rows of these runs."""
    return rows[np.array([one in runs for one in keys(rows)], dtype=bool)]


def provenance(study: Study, table: Table, runs: dict, judged: dict) -> pd.DataFrame:
    """One row a run: what it was made with, what it cost, what it gave; ``runs`` and their results by RUN."""
    rows = []
    cost = costs(study, table).set_index(RUN)
    for one, run in runs.items():
        record, found = folder.trained_record(run), judged[one]
        software = record["environment"]
        rows.append(
            {
                **dict(zip(RUN, one, strict=True)),
                **{name: found[name] for name in ("clean", "apgd-ce", "apgd-t", "fab-t", "robust")},
                **{name: found[name] for name in LAST if "last" in run.evaluation.weights},
                **{name: found[name] for name in ("n", "trivial", "flags")},
                **{name: cost.loc[one, name] for name in ("steps", "epoch_seconds", "memory")},
                "train_seconds": record["seconds"],
                "attack_seconds": sum(found[name] for name in found if name.startswith("seconds_")),
                "selected_epoch": record["best_epoch"],
                "epochs": record["config"]["training"]["epochs"],
                "precision": record["precision"],
                "settings": settings_of(study, run.id),
                "weights_sha256": record["files"][folder.WEIGHTS],
                "verdicts_sha256": folder.record_of(run, "evaluate")["files"][folder.IMAGES],
                "git_commit": software["git_commit"],
                "torch": software["packages"]["torch"],
                "platform": software["platform"],
                "device": record["device"],
            }
        )
    return pd.DataFrame(rows, columns=None if rows else RUN)


def letters(run: Run) -> str:
    """A letter a test image, in the images' order."""
    _, images = folder.judged(run)
    return "".join(images.sort_values("index")["broken_by"].map(CODES))


def of_other_settings(evidence: Evidence) -> Iterator[str]:
    """Runs in the csv whose settings the study has no more."""
    known = {key(id): id for id in evidence.table.run_ids}
    for run, settings in evidence.runs.set_index(RUN)["settings"].items():
        if run not in known or settings_of(evidence.study, known[run]) != settings:
            yield "/".join(map(str, run))


def draw(evidence: Evidence) -> None:
    """Clean against AutoAttack accuracy with the paper's points, and curvature along each training."""
    study, table, (model,) = evidence.study, evidence.table, evidence.table.networks
    cells = [(defense, epsilon) for defense in table.defenses for epsilon in evidence.epsilons]
    theirs = [
        {"defense": defense, "epsilon": epsilon, "origin": "paper", **found}
        for defense, epsilon in cells
        if evidence.seeds(defense, epsilon) and (found := evidence.published(defense, epsilon))
    ]
    points = pd.concat([evidence.runs.assign(origin=OURS), pd.DataFrame(theirs)]).assign(model=model)
    with plt.rc_context(rc(study)):
        drawings = {"plane": plane(study, table, points[PLANE].reset_index(drop=True))}
        if table.curvature_ids:
            drawings["ways"] = ways(study, table, evidence.curvature.assign(model=model))
        for kind, (figure, _) in drawings.items():
            target = HERE / study.name / f"{evidence.name}-{kind}.png"
            figure.savefig(target)
            plt.close(figure)
            shrink(target, target, WIDTH)


def rendered(template: str, tables: dict[str, Evidence]) -> str:
    """A page, filled in from the csv files; a verdict whose condition does not hold is an error."""
    environment = Environment(  # Markdown, of numbers of our own
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {
        "f1": lambda x: f"{x:.1f}",
        "f2": lambda x: f"{x:.2f}",
        "f3": lambda x: f"{x:.3f}",
        "p": p_value,
        "signed": signed,
        "interval": interval,
        "stands": stands,
    }
    tools = {
        "require": require,
        "middle": middle,
        "median": median,
        "margin": MARGIN,
        "nothing": NOTHING,
        "where": where,
        "share": share,
        "fisher": fisher,
    }
    return environment.get_template(template).render(**tools, **tables)


def require(holds: bool, sentence: str) -> str:
    """Nothing, if the csv files bear a sentence out; else the script ends."""
    if not holds:
        sys.exit(f"error: the csv files do not bear out: {sentence}")
    return ""


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
