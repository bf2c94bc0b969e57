"""Write this folder's csv files and pictures from the results of the studies, and its page from them: `make evidence`.

What is finished is added: a run of which there is nothing in `results/` keeps the rows that it has here, unless the
study's settings for it are others by now. `--check` changes nothing, and fails if the page is not what the csv files
beside it give, or if they have runs of other settings than the studies have.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import matplotlib.pyplot as plt
import pandas as pd
from claims import CODES, FILES, HERE, RUN, Evidence, middle, p_value, pair, read, settings_of
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from sat_core.errors import ConfigError
from sat_core.report.comparisons import signed
from sat_core.report.figures.curvature import measured
from sat_core.report.figures.style import STYLE, appearance, draw_points
from sat_core.report.numbers import costs, evaluated, histories
from sat_core.runs import folder
from sat_core.runs.files import atomic
from sat_core.study import Run, Study
from sat_core.study.file import Table

TABLES = {"mnist": ("mnist-small", "mnist-small", ("mnist", "cnn")), "digits": ("demo-evidence", "digits", None)}
"""What the page calls a table -> its study, its name there, and where the paper has its like."""
PAGES = {"README.md.jinja": HERE / "README.md"}
PICTURES = ("landscape", "curvature", "curvature-accuracy")
WIDTH = 1400


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is not what the csv give")
    check = parser.parse_args().check
    if not check:
        for study, table, paper in TABLES.values():
            collect(Study(f"config/{study}.yaml"), table)
            plane(Evidence(study, table, paper), HERE / study / f"{table}-plane.png")
    tables = {title: Evidence(*where) for title, where in TABLES.items()}
    if others := [f"{e.name}: {run}" for e in tables.values() for run in of_other_settings(e)]:
        sys.exit(f"error: of other settings than the study has now: {', '.join(others)}")
    for template, page in PAGES.items():
        text = rendered(template, tables)
        if not check:
            with atomic(page) as file:
                file.write(text)
        elif text != page.read_text(encoding="utf-8"):
            sys.exit(f"error: {page.name} is not what the csv files give: python docs/evidence/refresh.py")


def collect(study: Study, name: str) -> None:
    """A table's csv files, with the runs that `results/` has; and the pictures that the pipeline drew."""
    table, here = study.file.tables[name], HERE / study.name
    here.mkdir(exist_ok=True)
    judged = [run for run in map(study.run, table.run_ids) if evaluated(run) is not None]
    history = histories(study, table)
    curvature = measured(study, table)
    new = {
        "runs": provenance(study, table, judged),
        "history": history.drop(columns=["seconds", "model"], errors="ignore"),
        "curvature": curvature.drop(columns="model"),
        "verdicts": pd.DataFrame(map(letters, judged), columns=[*RUN, "letters"]),
    }
    made = {(run.defense, run.epsilon.text, run.seed) for run in judged}
    known = {(id.defense, id.epsilon.text, id.seed): settings_of(study, id) for id in table.run_ids}
    for kind in FILES:
        frame = new[kind]
        frame = frame[[tuple(run) in made for run in frame[RUN].to_numpy()]]
        if (here / f"{name}-{kind}.csv").exists():
            old = read(here, name, kind)
            runs = read(here, name, "runs").set_index(RUN)["settings"]
            kept = [run not in made and runs[run] == known.get(run) for run in map(tuple, old[RUN].to_numpy())]
            frame = pd.concat([old[kept], frame], ignore_index=True)
        order = {run: i for i, run in enumerate(known)}
        frame = frame.iloc[sorted(range(len(frame)), key=lambda i: order[tuple(frame[RUN].iloc[i])])]
        new[kind] = frame
    for kind, frame in new.items():
        with atomic(here / f"{name}-{kind}.csv") as file:
            frame.to_csv(file, index=False, float_format="%.6g")
    for kind in PICTURES:
        if (picture := study.folder / "figures" / f"{name}-{kind}.png").exists():
            shrink(picture, here / picture.name)


def provenance(study: Study, table: Table, judged: list[Run]) -> pd.DataFrame:
    """One row a run: what it was made with, what it cost, what it gave."""
    rows = []
    cost = costs(study, table).set_index(RUN)
    for run in judged:
        record, found = folder.trained_record(run), evaluated(run)
        software = record["environment"]
        key = (run.defense, run.epsilon.text, run.seed)
        rows.append(
            {
                **dict(zip(RUN, key, strict=True)),
                **{name: found[name] for name in ("clean", "apgd-ce", "apgd-t", "fab-t", "robust")},
                **{name: found[name] for name in ("last_clean", "last_robust", "n", "trivial", "flags")},
                **{name: cost.loc[key, name] for name in ("steps", "epoch_seconds", "memory")},
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
    return pd.DataFrame(rows, columns=None if rows else [*RUN, "settings"])


def letters(run: Run) -> list[object]:
    """A run's address, and a letter a test image, in the images' order."""
    _, images = folder.judged(run)
    return [run.defense, run.epsilon.text, run.seed, "".join(images.sort_values("index")["broken_by"].map(CODES))]


def of_other_settings(evidence: Evidence) -> Iterator[str]:
    """Runs in the csv whose settings the study has no more."""
    known = {(id.defense, id.epsilon.text, id.seed): id for id in evidence.table.run_ids}
    for run, settings in evidence.runs.set_index(RUN)["settings"].items():
        if run not in known or settings_of(evidence.study, known[run]) != settings:
            yield "/".join(map(str, run))


def plane(evidence: Evidence, target: Path) -> None:
    """Clean against AutoAttack accuracy, a marker a run; the paper's points hollow on the same plane."""
    looks = appearance(evidence.study, evidence.table)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(evidence.epsilons), figsize=(3.1 * len(evidence.epsilons), 3.6), sharey=True)
        for axis, epsilon in zip(axes, evidence.epsilons, strict=True):
            axis.set(title=f"$\\epsilon$ = {epsilon}", xlabel="clean accuracy (%)")
            for defense, (colour, marker) in looks.items():
                if not len(cell := evidence.cell(defense, epsilon)):
                    continue
                label = evidence.study.display(defense)
                draw_points(axis, cell["clean"], cell["robust"], cell["trivial"], colour, marker, label)
                if theirs := evidence.published(defense, epsilon):
                    hollow = {"marker": marker, "s": 48, "facecolors": "none", "edgecolors": colour}
                    axis.scatter(theirs["clean"], theirs["robust"], **hollow, zorder=4)
                    axis.plot(
                        [cell["clean"].mean(), theirs["clean"]],
                        [cell["robust"].mean(), theirs["robust"]],
                        color=colour,
                        lw=0.7,
                        alpha=0.6,
                    )
        axes[0].set_ylabel("AutoAttack accuracy (%)")
        if evidence.paper:
            axes[0].scatter([], [], marker="o", s=48, facecolors="none", edgecolors="0.3", label="the paper's")
        handles = {
            label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5)
        figure.savefig(target)
        plt.close(figure)
    shrink(target, target)


def shrink(source: Path, target: Path) -> None:
    """A picture for a page: at most WIDTH pixels wide, 256 colours."""
    with Image.open(source) as image:
        size = min(WIDTH, image.width)
        small = image.convert("RGB").resize((size, round(image.height * size / image.width)), Image.Resampling.LANCZOS)
        small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, optimize=True)


def rendered(template: str, tables: dict[str, Evidence]) -> str:
    """A page: every number from the csv files; a sentence whose condition does not hold is an error."""
    environment = Environment(  # noqa: S701: Markdown, of numbers of our own
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"f1": lambda x: f"{x:.1f}", "f2": lambda x: f"{x:.2f}", "signed": signed, "p": p_value}
    tools = {"require": require, "middle": middle, "pair": pair}
    return environment.get_template(template).render(**tools, **tables)


def require(holds: bool, sentence: str) -> str:
    """Nothing, if the csv files bear a sentence out; else the script ends."""
    return "" if holds else stop(f"error: the csv files do not bear out: {sentence}")


def stop(message: str) -> NoReturn:
    sys.exit(message)


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
