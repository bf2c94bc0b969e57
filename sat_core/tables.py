"""The study's tables: AutoAttack's results of every run, put side by side. Needs no torch."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from sat_core.config import Run, Study, Table
from sat_core.files import atomic, read_json, verify
from sat_core.trivial import is_trivial

TRIVIAL_SIGN = "†"
TRIVIAL_NOTE = (
    f"{TRIVIAL_SIGN} at least one seed ended as a trivial classifier: constant, or no better than a constant."
)


def results(study: Study, table: Table) -> pd.DataFrame:
    """One row a run of the table that has been evaluated: its address, accuracies in %, and whether it is trivial."""
    rows = [evaluated(study.run(id)) for id in table.run_ids if (study.run(id).folder / "autoattack.json").exists()]
    columns = ["model", "defense", "epsilon", "seed", "clean", "robust", "n", "trivial"]
    return pd.DataFrame(rows, columns=columns)


def evaluated(run: Run) -> dict[str, object]:
    """The row of one evaluated run; raises ConfigError if its files are damaged."""
    summary = read_json(run.folder / "autoattack.json")
    for name, expected in summary["files"].items():
        verify(run.folder / name, expected, "delete it and run `evaluate` again")
    images = pd.read_csv(run.folder / "autoattack.csv", keep_default_na=False)
    return {
        "model": run.model,
        "defense": run.defense,
        "epsilon": run.epsilon.text,
        "seed": run.seed,
        "clean": 100 * summary["clean"],
        "robust": 100 * summary["robust"],
        "n": summary["n"],
        "trivial": is_trivial(images),
    }


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation over seeds and number of seeds of each cell; the content of the table's csv."""
    grouped = rows.groupby(["model", "defense", "epsilon"], sort=False)
    return grouped.agg(
        clean=("clean", "mean"),
        clean_std=("clean", "std"),
        robust=("robust", "mean"),
        robust_std=("robust", "std"),
        seeds=("seed", "count"),
        trivial_seeds=("trivial", "sum"),
        test_images=("n", "first"),
    ).reset_index()


def layout(table: Table, cells: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The paper's layout, twice: as text, and as True where a cell is trivial.

    Rows are models x defenses, columns epsilons x (Clean, Robust); a cell without results is a dash.
    """
    index = pd.MultiIndex.from_product([table.models, table.defenses], names=["model", "defense"])
    columns = pd.MultiIndex.from_product([[f"eps {e}" for e in table.epsilons], ["Clean", "Robust"]])
    text = pd.DataFrame("–", index=index, columns=columns)
    trivial = pd.DataFrame(False, index=index, columns=columns)
    for cell in cells.itertuples():
        for kind in ("Clean", "Robust"):
            where = (cell.model, cell.defense), (f"eps {cell.epsilon}", kind)
            mean, std = getattr(cell, kind.lower()), getattr(cell, f"{kind.lower()}_std")
            spread = "" if math.isnan(std) else f" ± {std:.2f}"
            text.loc[where] = f"{mean:.2f}{spread}{' ' + TRIVIAL_SIGN if cell.trivial_seeds else ''}"
            trivial.loc[where] = bool(cell.trivial_seeds)
    if len(table.models) == 1:
        text, trivial = text.droplevel("model"), trivial.droplevel("model")
    return text, trivial


def note(table: Table, cells: pd.DataFrame) -> str:
    """What a reader must know beside the numbers."""
    images = "/".join(str(n) for n in sorted(set(cells["test_images"]))) or "no"
    return (
        f"{table.caption} Accuracy in % on {images} test images of {table.dataset}, model {', '.join(table.models)}; "
        f"robust: AutoAttack (standard, L_inf); {len(table.seeds)} seed{'s' * (len(table.seeds) > 1)}. {TRIVIAL_NOTE}"
    ).strip()


def write_table(study: Study, name: str) -> Path:
    """Write ``tables/<name>.{csv,md,tex,html}`` from the results there are; returns the markdown file's path."""
    table = study.file.tables[name]
    cells = summarise(results(study, table))
    text, trivial = layout(table, cells)
    below = note(table, cells)
    folder = study.folder / "tables"
    with atomic(folder / f"{name}.csv") as file:
        cells.to_csv(file, index=False)
    flat = text.reset_index()
    flat.columns = [" ".join(part for part in column if part) for column in flat.columns]
    with atomic(folder / f"{name}.md") as file:
        file.write(f"{flat.to_markdown(index=False, disable_numparse=True)}\n\n{below}\n")
    style = styled(text, trivial)
    with atomic(folder / f"{name}.html") as file:
        file.write(style.set_caption(below).to_html(doctype_html=True))
    with atomic(folder / f"{name}.tex") as file:
        file.write(latex(style, below))
    return folder / f"{name}.md"


def styled(text: pd.DataFrame, trivial: pd.DataFrame) -> Styler:
    """The laid-out table with trivial cells in red."""
    red = trivial.map(lambda flag: "color: red" if flag else "")
    return text.style.set_uuid("cells").apply(lambda _: red, axis=None).hide(names=True)


def latex(style: Styler, caption: str) -> str:
    """A booktabs table; the document needs ``\\usepackage{booktabs,xcolor}``."""
    for symbol, command in ((TRIVIAL_SIGN, r"$^\dagger$"), ("±", r"$\pm$"), ("–", "--"), ("%", r"\%"), ("_", r"\_")):
        caption = caption.replace(symbol, command)
    body = style.to_latex(
        hrules=True, convert_css=True, caption=caption, position_float="centering", multicol_align="c"
    )
    return body.replace(f" {TRIVIAL_SIGN}", r"$^\dagger$").replace("±", r"$\pm$").replace("–", "--")


def histories(study: Study, table: Table) -> pd.DataFrame:
    """The training histories of the table's complete runs, one row an epoch, with the address of the run."""
    frames = []
    for id in table.run_ids:
        path = study.run(id).folder / "history.csv"
        if path.exists():
            address = {"model": id.model, "defense": id.defense, "epsilon": id.epsilon.text, "seed": id.seed}
            frames.append(pd.read_csv(path).assign(**address))
    return pd.concat(frames) if frames else pd.DataFrame()
