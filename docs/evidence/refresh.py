"""Write this folder's tables, figures, provenance and numbers from the results of the studies: `make evidence`.

The accuracies, losses, steps and eigenvalues in README.md here are in the files that this writes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import pandas as pd
from PIL import Image
from scipy import stats

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from sat_core.errors import ConfigError  # noqa: E402
from sat_core.report.figures.curvature import measured  # noqa: E402
from sat_core.report.numbers import ADDRESS, AFTER, costs, evaluated, histories, published, results  # noqa: E402
from sat_core.runs.files import read_json  # noqa: E402
from sat_core.study import Study  # noqa: E402
from sat_core.study.file import PARTS, Table  # noqa: E402

STUDIES = ("demo-evidence", "mnist-10k")
FIGURES = ("tradeoff", "curves", "curvature", "landscape")
WIDTH = 1400
CELL = ["defense", "epsilon"]


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", default=STUDIES, metavar="STUDY", help="all of them if none is named")
    for name in parser.parse_args().studies:
        study = Study(f"config/{name}.yaml")
        if not (study.folder / "report.html").exists():
            sys.exit(f"error: {study.folder} is not complete: snakemake --configfile {study.path} first")
        with tempfile.TemporaryDirectory() as new:
            write(study, folder := Path(new, name))
            shutil.rmtree(HERE / name, ignore_errors=True)
            shutil.copytree(folder, HERE / name)
        print(f"written: {(HERE / name).relative_to(HERE.parents[1])}")


def write(study: Study, folder: Path) -> None:
    """Everything of one study, into a new folder."""
    folder.mkdir()
    for title, table in study.file.tables.items():
        for part in PARTS:
            shutil.copy(study.folder / "tables" / f"{title}{part}.md", folder)
        for picture in sorted((study.folder / "figures").glob(f"{title}-*.png")):
            if picture.stem.removeprefix(f"{title}-") in FIGURES:
                shrink(picture, folder / picture.name)
        provenance(study, table).to_csv(folder / f"{title}-runs.csv", index=False, float_format="%.6g")
        history = histories(study, table).set_index(ADDRESS).drop(columns="seconds")
        history.to_csv(folder / f"{title}-history.csv", float_format="%.4g")
        (folder / f"{title}-numbers.md").write_text("\n".join(numbers(study, title, table)))


def shrink(source: Path, target: Path) -> None:
    """A picture for a page: at most WIDTH pixels wide, 256 colours."""
    with Image.open(source) as image:
        size = min(WIDTH, image.width)
        small = image.convert("RGB").resize((size, round(image.height * size / image.width)), Image.Resampling.LANCZOS)
        small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, optimize=True)


def provenance(study: Study, table: Table) -> pd.DataFrame:
    """One row a run: what it was made with, what it cost, what it gave."""
    rows = []
    for id in table.run_ids:
        folder = study.run(id).folder
        if evaluated(study.run(id)) is None:
            continue
        record, verdict = read_json(folder / "run.json"), read_json(folder / "autoattack.json")
        software = record["environment"]
        rows.append(
            {
                "run": id.path,
                "made_of": hashlib.sha256(json.dumps(record["made_of"], sort_keys=True).encode()).hexdigest()[:16],
                "weights_sha256": record["files"]["model.safetensors"],
                "git_commit": software["git_commit"],
                "torch": software["packages"]["torch"],
                "platform": software["platform"],
                "device": record["device"],
                "precision": record["config"]["training"]["precision"],
                "epochs": record["config"]["training"]["epochs"],
                "selected_epoch": record["best_epoch"],
                "train_seconds": record["seconds"],
                "attack_seconds": sum(verdict["seconds"].values()),
                "peak_memory_mb": record["peak_memory_mb"].get("main"),
                "test_images": verdict["n"],
                "clean": verdict["clean"],
                **verdict["after"],
                "robust": verdict["robust"],
            }
        )
    return pd.DataFrame(rows)


def numbers(study: Study, title: str, table: Table) -> list[str]:
    """The lines of the numbers behind each claim."""
    rows, history = results(study, table), histories(study, table)
    text = [f"# {table.caption} The numbers behind the claims", ""]
    text += ["Written by `make evidence` from `results/`; the tables and pictures beside it are of the same runs.", ""]
    text += ["## Every seed (%, clean / AutoAttack; (t): trivial), beside the paper's MNIST numbers", ""]
    text += [beside_the_paper(rows).to_markdown(index=False), ""]
    text += ["## The loss in training", ""]
    text += ["ln 10 = 2.3026 is the loss of a network that says nothing.", ""]
    text += [losses(history, rows).to_markdown(index=False, floatfmt=".3f"), ""]
    text += ["## After each attack (%, mean over seeds)", ""]
    means = rows.groupby(CELL, sort=False)[list(AFTER)].mean().reset_index()
    text += [means.to_markdown(index=False, floatfmt=".2f"), ""]
    text += ["## Cost, against Madry of the same epsilon and seed (median over seeds)", ""]
    text += [relative_cost(study, table).to_markdown(index=False, floatfmt=".2f"), ""]
    if table.curvature:
        text += ["## Top eigenvalue of the Hessian of the adversarial loss, at the selected weights", ""]
        text += curvature(study, table)
    return text


def beside_the_paper(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a cell, a column a seed."""
    found = []
    for (defense, epsilon), cell in rows.groupby(CELL, sort=False):
        row = {"epsilon": epsilon, "defense": defense}
        for run in cell.itertuples():
            row[f"seed {run.seed}"] = f"{run.clean:.1f} / {run.robust:.1f}{' (t)' if run.trivial else ''}"
        paper = [
            published().get(("mnist", "cnn", defense, Fraction(epsilon), accuracy), {}).get("published")
            for accuracy in ("clean", "robust")
        ]
        row["paper (MNIST, 60,000)"] = "–" if None in paper else "{:.2f} / {:.2f}".format(*paper)
        found.append(row)
    return pd.DataFrame(found).fillna("–").sort_values("epsilon", kind="stable")


def losses(history: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """One row a run: its training loss at a few epochs, and if it ends trivial."""
    last = history["epoch"].max()
    shown = sorted({0, *(round(last * part / 4) for part in (1, 2, 3)), last})
    wide = history[history["defense"] != "standard"].pivot_table("loss", ADDRESS, "epoch", sort=False)[shown]
    wide = wide.rename(columns=lambda epoch: f"epoch {epoch + 1}").reset_index()
    return wide.merge(rows[[*ADDRESS, "trivial"]], "left", ADDRESS).drop(columns="model")


def relative_cost(study: Study, table: Table) -> pd.DataFrame:
    """PGD steps a sample, seconds an epoch, and their ratio to Madry's."""
    cost = costs(study, table)
    key = ["model", "epsilon", "seed"]
    madry = cost[cost["defense"] == "madry"][[*key, "epoch_seconds"]]
    cost = cost.merge(madry, "left", key, suffixes=("", "_madry"))
    cost["x madry"] = cost["epoch_seconds"] / cost["epoch_seconds_madry"]
    shown = cost.groupby(CELL, sort=False)[["steps", "epoch_seconds", "x madry"]].median()
    return shown.reset_index().rename(columns={"steps": "PGD steps", "epoch_seconds": "epoch (s)"})


def curvature(study: Study, table: Table) -> list[str]:
    """Rank correlation with epsilon for each defense, and each defense against Madry at the same epsilon and seed."""
    frame = measured(study, table)
    frame = frame[frame["selected"]]
    sound = frame[~frame["trivial"]]
    wide = frame.assign(
        value=[
            f"{row.lambda_max:.3g} ({row.adversarial:.0f} %{', t' if row.trivial else ''})"
            for row in frame.itertuples()
        ]
    ).pivot_table("value", CELL, "seed", aggfunc="first", sort=False)
    text = ["In brackets: accuracy on the same adversarial images; t: trivial, left out of what follows.", ""]
    text += [wide.rename(columns=lambda seed: f"seed {seed}").reset_index().to_markdown(index=False), ""]
    ranks = []
    for defense, runs in sound.groupby("defense", sort=False):
        radius = [float(Fraction(epsilon)) for epsilon in runs["epsilon"]]
        if len(set(radius)) > 1:
            rank = stats.spearmanr(radius, runs["lambda_max"])
            ranks.append(
                {"defense": defense, "Spearman with epsilon": rank.statistic, "p": rank.pvalue, "n": len(runs)}
            )
    text += [pd.DataFrame(ranks).to_markdown(index=False, floatfmt=".3f"), ""] if ranks else []
    key, pairs = ["model", "epsilon", "seed"], []
    base = sound[sound["defense"] == "madry"]
    for defense, runs in sound[sound["defense"] != "madry"].groupby("defense", sort=False):
        both = runs.merge(base, on=key, suffixes=("", "_madry"))
        if len(both):
            ratio = both["lambda_max"] / both["lambda_max_madry"]
            row = {"against Madry": defense, "lower in": f"{(ratio < 1).sum()} of {len(both)}"}
            pairs.append(row | {"median ratio": ratio.median(), "smallest": ratio.min(), "largest": ratio.max()})
    return text + ([pd.DataFrame(pairs).to_markdown(index=False, floatfmt=".2f"), ""] if pairs else [])


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
