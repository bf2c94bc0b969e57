"""Which defense beats which: differences of accuracy on the same test images and seeds, with what chance may do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from sat_core.report.notes import about, missing, standing
from sat_core.report.numbers import results
from sat_core.report.render import TRIVIAL, Cell, Sheet, wrapped
from sat_core.report.tables import frame, long_index, without_one_model, write_sheet
from sat_core.runs import folder
from sat_core.study import Run, Study
from sat_core.study.file import COMPARISONS, Table

LEVEL = 0.05
LEAST = -300.0
"""The logarithm of the smallest p that is told from 0."""
MOST_WITH_INTERVALS = 8
"""Defenses whose differences have room for their intervals below them."""
COLUMNS = [
    *("model", "epsilon", "accuracy", "row", "column", "difference"),
    *("low", "high", "p", "p_holm", "images", "seeds"),
]


def compare(study: Study, name: str) -> pd.DataFrame:
    """One row a pair of defenses, block and accuracy: ``row`` minus ``column``, in points of a percentage.

    ``low``, ``high``: the 95 % interval of this one difference; ``p``: two-sided, and after Holm's correction for all
    pairs of the block; ``images`` and ``seeds`` that both were judged on. Pairs that share none are left out.
    """
    table = study.file.tables[name]
    rows = []
    for model in table.networks:
        for epsilon in table.epsilons:
            ids = [id for id in table.run_ids if (id.model, id.epsilon) == (model, epsilon)]
            judged = {id: right for id in ids if (right := answers(study.run(id))) is not None}
            for accuracy in ("robust", "clean"):
                found = list(block({(id.defense, id.seed): right[accuracy] for id, right in judged.items()}, table))
                corrected = holm(np.array([row["p"] for row in found]), pairs(table, model))
                where = {"model": model, "epsilon": epsilon.text, "accuracy": accuracy}
                rows += [where | row | {"p_holm": p} for row, p in zip(found, corrected, strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS)


def answers(run: Run) -> pd.DataFrame | None:
    """Test image -> whether the answer is right, ``clean``, and under every attack, ``robust``; None if not judged."""
    verdict = folder.judged(run)
    if verdict is None:
        return None
    images = verdict[1].set_index("index")
    return pd.DataFrame({"clean": images["label"] == images["prediction"], "robust": images["broken_by"] == ""})


def block(right: dict[tuple[str, int], pd.Series], table: Table) -> Iterator[dict]:
    """The pairs of one model, epsilon and accuracy; ``right`` by defense and seed."""
    for first, second in combinations(table.defenses, 2):
        seeds = [seed for seed in table.seeds if (first, seed) in right and (second, seed) in right]
        if seeds:
            pairs = [right[first, seed].astype(float) - right[second, seed].astype(float) for seed in seeds]
            both = pd.concat(pairs, axis=1, join="inner").dropna()
            if len(both):
                yield {"row": first, "column": second, **difference(both.to_numpy())}


def difference(d: np.ndarray) -> dict[str, float]:
    """Mean, 95 % interval (in points) and two-sided p of paired differences, (images, seeds) in {-1, 0, 1}.

    Test images and seeds are both samples, crossed with one another: what is asked is what other images and other
    seeds would give. As in :func:`~sat_core.report.numbers.interval` the interval's reach is the root of the sum of the
    squares of two: that of the mean over images, and that of the mean over seeds, each Student's. p is the level at
    which the interval would end at 0. It errs on the safe side, because the noise within a cell counts twice; a test
    counts how often chance deceives it. (Satterthwaite's degrees of freedom, that is Clark's min F', were tried: with 2
    seeds they are deceived about twice as often, which a test counts, too.) The variance over images is that of two
    images more, half of one in each of the four cells (Agresti and Min 2005), so that no interval is empty. With one
    seed nothing is known of others, and the images alone count.

    It presumes seeds of one kind. Where a training either takes off or ends in a trivial classifier, three that end
    alike hide how often the next would not, and the interval may miss the truth as often as not: a test counts that.
    """
    from scipy import optimize, stats  # takes a second

    (images, seeds), of_each = d.shape, d.mean(axis=1)
    if not d.size:
        raise ValueError("no seed or no image is shared")
    mean, n = float(of_each.mean()), images + 2
    variances = [(((of_each**2).sum() + 1) / n - (of_each.sum() / n) ** 2) / n]
    variances += [d.mean(axis=0).var(ddof=1) / seeds] if seeds > 1 else []
    freedoms = np.array([n - 1, seeds - 1][: len(variances)])

    def reach(level: float) -> float:
        return math.sqrt((stats.t.isf(level / 2, freedoms) ** 2 * variances).sum())

    def excess(log_level: float) -> float:
        return reach(math.exp(log_level)) - abs(mean)

    p = 1.0 if mean == 0 else math.exp(optimize.brentq(excess, LEAST, 0)) if excess(LEAST) > 0 else math.exp(LEAST)
    low, high = max(mean - reach(LEVEL), -1.0), min(mean + reach(LEVEL), 1.0)
    points = {"difference": 100 * mean, "low": 100 * low, "high": 100 * high}
    return {**points, "p": p, "images": images, "seeds": seeds}


def pairs(table: Table, model: str) -> int:
    """How many pairs of defenses a block of this model has once all of its runs are judged."""
    return math.comb(sum(network == model for network, _ in table.rows), 2)


def holm(p: np.ndarray, count: int | None = None) -> np.ndarray:
    """p-values, corrected so that of all hypotheses that hold one is rejected at most so often (Holm 1979).

    ``count`` hypotheses, of which some may not have been tested yet; as many as ``p`` if not given.

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03]))
        array([0.03, 0.06, 0.06])
    """
    order = np.argsort(p)
    corrected = np.empty_like(p)
    factors = (len(p) if count is None else count) - np.arange(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return corrected


def sheet(study: Study, name: str) -> Sheet:
    """Rows and columns are defenses; a cell has the row's robust accuracy minus the column's, bold if surely more.

    One seed alone makes nothing sure: another network might as well be the better one. Nor does a trivial classifier on
    either side: whether a training collapses is a chance that :func:`difference` does not count.
    """
    table = study.file.tables[name]
    data, rows = compare(study, name), results(study, table)
    cells = frame(long_index(table), pd.Index([wrapped(study.display(defense)) for defense in table.defenses]))
    for i, defense in enumerate(table.defenses):
        cells.loc[pd.IndexSlice[:, :, defense], cells.columns[i]] = Cell("")
    trivial, stale = (
        {(run.model, run.epsilon, run.defense) for run in rows[marked].itertuples()}
        for marked in (rows["trivial"].astype(bool), rows["stale"].ne(""))
    )
    for pair in data[data["accuracy"] == "robust"].itertuples():
        place = pair.model, f"ε = {pair.epsilon}"
        i, j = table.defenses.index(pair.row), table.defenses.index(pair.column)
        collapsed = {name for name in (pair.row, pair.column) if (pair.model, pair.epsilon, name) in trivial}
        sure = pair.p_holm < LEVEL and pair.seeds > 1 and not collapsed
        for row, column, sign, low, high in ((i, j, 1, pair.low, pair.high), (j, i, -1, -pair.high, -pair.low)):
            text = signed(sign * pair.difference)
            below = {"95 %": f"[{signed(low)}, {signed(high)}]"} if len(cells.columns) <= MOST_WITH_INTERVALS else {}
            is_stale = any((pair.model, pair.epsilon, defense) in stale for defense in (pair.row, pair.column))
            better = bool(sure and sign * pair.difference > 0)
            cell = Cell(text, "", below, better, table.defenses[row] in collapsed, is_stale)
            cells.loc[(*place, table.defenses[row]), cells.columns[column]] = cell
    cells = cells.rename(index={defense: study.display(defense) for defense in table.defenses}, level=2)
    return Sheet(without_one_model(table, cells), note(table, rows, data), data)


def signed(points: float) -> str:
    """To one decimal, with its sign, which a number just below 0 keeps; nothing at all has a plus.

    Example:
        >>> signed(0.25), signed(-0.04), signed(-0.0)
        ('+0.2', '−0.0', '+0.0')
    """
    return f"{0.0 if abs(points) < 1e-9 else points:+.1f}".replace("-", "−")


def note(table: Table, rows: pd.DataFrame, data: pd.DataFrame) -> str:
    """How to read it."""
    few = len(table.defenses) <= MOST_WITH_INTERVALS
    count = "/".join(str(n) for n in sorted({pairs(table, model) for model in table.networks}))
    seeds, origin = set(data["seeds"]), "for other test images; of other seeds nothing is known with one"
    if seeds != {1}:
        alone = "; pairs of one seed: for other images alone" if 1 in seeds else ""
        origin = f"for other test images and other seeds, which are paired: both errors add up{alone}"
    parts = [
        about(table, rows, "Each number is the robust accuracy of the row minus that of the column, in points."),
        f"Robust is the accuracy under AutoAttack (standard, L∞). {'Below' if few else 'In the csv'} stands the 95 % "
        f"interval, {origin}.",
        f"Bold: the row beats the column over two seeds or more, p < {LEVEL} after Holm's correction for all "
        f"{count} pairs.",
        f"What is not bold may be chance; {TRIVIAL} (red): a trivial classifier, which beats none, and against which "
        "nothing is bold: whether a training collapses is a chance that the intervals do not count.",
        "The csv has the same of clean accuracy.",
        missing(table, rows),
        standing(rows),
    ]
    return " ".join(filter(None, parts))


def write_comparisons(study: Study, name: str) -> Path:
    """Write ``tables/<name>-comparisons`` as csv, md, tex and html; returns the path of the markdown file."""
    return write_sheet(study, f"{name}{COMPARISONS}", sheet(study, name))
