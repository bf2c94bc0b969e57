"""What the committed results say: one table's csv files, and the statistics that README.md here quotes.

Reads nothing but the files beside it and what others have published, so that its sentences can be checked anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from sat_core.report.comparisons import LEVEL, difference, holm, signed  # noqa: E402
from sat_core.report.numbers import published  # noqa: E402
from sat_core.study import Run, RunId, Study  # noqa: E402
from sat_core.study.fingerprint import default, made_of  # noqa: E402

RUN = ["defense", "epsilon", "seed"]
CODES = {"clean": "w", "apgd-ce": "c", "apgd-t": "t", "fab-t": "f", "square": "s", "": "."}
"""What became of a test image -> its letter in `*-verdicts.csv`: wrong unattacked, broken by an attack, or standing."""
FILES = ("runs", "history", "curvature", "verdicts")
SHORT_OF = "–"
NOTHING = 0.2
"""Of ten classes, as in docs/hsat.md: clean accuracy on validation images below it is that of a constant, or nearly."""
MARGIN = 3
"""Points: what counts as no difference. The paper's own are 1 to 5."""
FEW = 6
"""Runs: a rank correlation of fewer cannot be told from chance."""


class Evidence:
    """The results of one table, from its csv files; ``paper``: dataset and model under which others published it."""

    def __init__(self, study: Study, table: str, paper: tuple[str, str] | None = None):
        self.study, self.name, self.paper = study, table, paper
        self.table = study.file.tables[table]
        for kind in FILES:
            setattr(self, kind, read(HERE / study.name, table, kind))
        self.epsilons = [epsilon.text for epsilon in self.table.epsilons]

    def cell(self, defense: str, epsilon: str) -> pd.DataFrame:
        """The runs of one cell, a row a seed."""
        return self.runs[(self.runs["defense"] == defense) & (self.runs["epsilon"] == epsilon)]

    def seeds(self, defense: str, epsilon: str) -> int:
        """How many there are."""
        return len(self.cell(defense, epsilon))

    def mean(self, defense: str, epsilon: str, accuracy: str = "robust") -> float:
        """Accuracy in %, over the seeds that there are."""
        return float(self.cell(defense, epsilon)[accuracy].mean())

    def trivial(self, defense: str, *epsilons: str) -> tuple[int, int]:
        """Runs that are trivial, and all; of every epsilon if none is named."""
        cells = pd.concat([self.cell(defense, epsilon) for epsilon in epsilons or self.epsilons])
        return int(cells["trivial"].sum()), len(cells)

    def of(self, *count: tuple[int, int]) -> str:
        """Counts, added, in words."""
        return f"{sum(some for some, _ in count)} of {sum(all for _, all in count)}"

    def every_seed(self) -> str:
        """A row a cell, a column a seed, and the paper's number."""
        rows = []
        for epsilon in self.epsilons:
            for defense in self.table.defenses:
                cell = self.cell(defense, epsilon).set_index("seed")
                if not len(cell):
                    continue
                row = {"epsilon": epsilon, "defense": defense}
                for seed in self.table.seeds:
                    row[f"seed {seed}"] = (
                        pair(*cell.loc[seed, ["clean", "robust", "trivial"]]) if seed in cell.index else SHORT_OF
                    )
                row["mean"] = pair(cell["clean"].mean(), cell["robust"].mean()) + trivials(cell)
                row["paper"] = self.theirs(defense, epsilon)
                rows.append(row)
        frame = pd.DataFrame(rows)
        return (frame if self.paper else frame.drop(columns="paper")).to_markdown(index=False, disable_numparse=True)

    def beside(self, defense: str) -> list[str]:
        """For each epsilon the mean over seeds, and the paper's number where it has a like."""
        cells = []
        for epsilon in self.epsilons:
            cell = self.cell(defense, epsilon)
            count = f" ({len(cell)})" if len(cell) < len(self.table.seeds) else ""
            constant = f", trivial {self.of(self.trivial(defense, epsilon))}" if cell["trivial"].any() else ""
            cells.append(
                pair(cell["clean"].mean(), cell["robust"].mean()) + count + constant if len(cell) else SHORT_OF
            )
            if self.paper:
                cells.append(self.theirs(defense, epsilon))
        return [f"{text} " for text in cells]

    def published(self, defense: str, epsilon: str) -> dict | None:
        """The paper's clean and robust accuracy of a cell in %, and whether it is trivial."""
        if self.paper is None:
            return None
        found = {a: published().get((*self.paper, defense, Fraction(epsilon), a)) for a in ("clean", "robust")}
        if None in found.values():
            return None
        return {a: number["published"] for a, number in found.items()} | {
            "trivial": found["clean"]["published_trivial"]
        }

    def theirs(self, defense: str, epsilon: str) -> str:
        """The paper's number of a cell, as a table has it."""
        found = self.published(defense, epsilon)
        return pair(**found, digits=2) if found else SHORT_OF

    def rank(self, epsilon: str, accuracy: str = "robust") -> dict[str, float]:
        """Spearman's correlation of our column with the paper's over the defenses that both have, as :func:`ranks`."""
        both = [
            (self.mean(defense, epsilon, accuracy), theirs[accuracy])
            for defense in self.table.defenses
            if (theirs := self.published(defense, epsilon)) and self.seeds(defense, epsilon)
        ]
        return ranks(*zip(*both, strict=True))

    def right(self, defense: str, epsilon: str, accuracy: str) -> pd.DataFrame:
        """Whether each test image is answered rightly, clean or under every attack: a row an image, a column a seed."""
        rows = self.verdicts[(self.verdicts["defense"] == defense) & (self.verdicts["epsilon"] == epsilon)]
        wrong = [CODES["clean"]] if accuracy == "clean" else [code for by, code in CODES.items() if by]
        return pd.DataFrame({row.seed: ~pd.Series(list(row.letters)).isin(wrong) for row in rows.itertuples()})

    def against(self, defense: str, base: str, epsilon: str, accuracy: str = "robust") -> dict[str, float]:
        """``defense`` minus ``base`` in points, on the seeds of both: difference, low, high, p, images, seeds."""
        ours, theirs = (self.right(name, epsilon, accuracy).astype(float) for name in (defense, base))
        shared = ours.columns.intersection(theirs.columns)
        return difference((ours[shared] - theirs[shared]).to_numpy())

    def shared(self, first: str, second: str, epsilon: str) -> set[int]:
        """Seeds that both have."""
        return set(self.cell(first, epsilon)["seed"]) & set(self.cell(second, epsilon)["seed"])

    def compared(self, pairs: list[tuple[str, str]]) -> pd.DataFrame:
        """A row a pair, epsilon and accuracy: as :meth:`against`, and ``p_holm``, corrected for all of these rows.

        ``counts``: more than one seed, and no network that is trivial.
        """
        rows = [
            {"epsilon": epsilon, "first": first, "second": second, "accuracy": accuracy}
            | (found := self.against(first, second, epsilon, accuracy))
            | {"trivial": (trivial := any(self.trivial(name, epsilon)[0] for name in (first, second)))}
            | {"counts": found["seeds"] > 1 and not trivial}
            for epsilon in self.epsilons
            for first, second in pairs
            for accuracy in ("robust", "clean")
            if self.shared(first, second, epsilon)
        ]
        frame = pd.DataFrame(rows)
        return frame.assign(p_holm=holm(frame["p"].to_numpy())) if rows else frame

    def shown(self, compared: pd.DataFrame) -> str:
        """A row a pair and epsilon, bold where it is significant and counts."""
        rows = []
        for (epsilon, first, second), found in compared.groupby(["epsilon", "first", "second"], sort=False):
            row = {"epsilon": epsilon, "pair": f"{first} – {second}{' (t)' if found['trivial'].any() else ''}"}
            for one in found.itertuples():
                text = interval(one._asdict())
                row[one.accuracy] = f"**{text}**" if one.p_holm < LEVEL and one.counts else text
                row[f"p, {one.accuracy}"] = p_value(one.p_holm) if one.counts else f"({p_value(one.p_holm)})"
            rows.append(row | {"seeds": one.seeds})
        return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)

    def counted(self, compared: pd.DataFrame, first: str, accuracy: str = "robust") -> str:
        """How often a defense is significantly better, worse, and neither, in words, of the rows that count."""
        rows = where(compared[compared["counts"]], first=first, accuracy=accuracy)
        sure = rows[rows["p_holm"] < LEVEL]["difference"]
        return f"better in {(sure > 0).sum()}, worse in {(sure < 0).sum()}, neither in {len(rows) - len(sure)}"

    def ahead(self, defense: str, base: str, *epsilons: str) -> tuple[int, int]:
        """Pairs of the same seed in which a defense has the higher robust accuracy, and all pairs."""
        runs = self.runs[self.runs["epsilon"].isin(epsilons)]
        wide = runs.pivot_table("robust", ["epsilon", "seed"], "defense")[[defense, base]].dropna()
        return int((wide[defense] > wide[base]).sum()), len(wide)

    def ended(self, defense: str, *epsilons: str) -> int:
        """Runs whose last epoch answers next to nothing rightly, unattacked: selection puts such weights last."""
        last = self.history.groupby(RUN).last().reset_index()
        cells = last[(last["defense"] == defense) & last["epsilon"].isin(epsilons or self.epsilons)]
        return int((cells["validation_clean"] < NOTHING).sum())

    def constants(self, defense: str, *epsilons: str) -> str:
        """Trivial runs, of all, and how many more ended so."""
        trivial, count = self.trivial(defense, *epsilons)
        more = self.ended(defense, *epsilons) - trivial
        return SHORT_OF if not count else f"{trivial} of {count}" + (f" ({more} at the end)" if more > 0 else "")

    def masked(self, *defenses: str) -> Iterator[tuple[str, list[str]]]:
        """Each epsilon that has runs, and of each defense what Square takes after the other attacks, with the flags."""
        for epsilon in self.epsilons:
            found = []
            for name in defenses:
                taken = self.takes(epsilon, name)
                flags = self.runs.loc[taken.index, "flags"].fillna("").astype(str).str.contains("square").sum()
                found.append(f"{taken.mean():.1f} ({flags} of {len(taken)})" if len(taken) else SHORT_OF)
            if set(found) != {SHORT_OF}:
                yield epsilon, found

    def takes(self, epsilon: str, *defenses: str) -> pd.Series:
        """What Square takes after the other attacks, in points, of each run that is not trivial."""
        cells = pd.concat([self.cell(name, epsilon) for name in defenses])
        return (cells["fab-t"] - cells["robust"])[~cells["trivial"]]

    def losses(self, defense: str, epsilon: str) -> pd.DataFrame:
        """Training loss, a row an epoch, a column a seed."""
        rows = self.history[(self.history["defense"] == defense) & (self.history["epsilon"] == epsilon)]
        return rows.pivot_table("loss", "epoch", "seed")

    def trained(self, *defenses: str) -> list[str]:
        """Those that have runs."""
        return [name for name in defenses if name in set(self.runs["defense"])]

    def steps(self, defense: str, epsilon: str) -> float:
        """PGD steps a sample, over the whole training and the seeds."""
        return float(self.cell(defense, epsilon)["steps"].mean())

    def selected(self, defense: str, epsilon: str) -> pd.DataFrame:
        """Curvature at the selected weights, a row a seed, trivial networks left out."""
        found = self.curvature
        return found[
            found["selected"] & ~found["trivial"] & (found["defense"] == defense) & (found["epsilon"] == epsilon)
        ].set_index("seed")

    def ratios(self, defense: str, base: str, measure: str, *epsilons: str) -> list[float]:
        """``defense`` over ``base`` at the selected weights, for each epsilon and seed in which neither is trivial."""
        found = []
        for epsilon in epsilons or self.epsilons:
            first, second = self.selected(defense, epsilon), self.selected(base, epsilon)
            shared = first.index.intersection(second.index)
            found += list(first.loc[shared, measure] / second.loc[shared, measure])
        return found

    def at_equal_accuracy(self, defense: str, base: str, measure: str) -> list[float]:
        """``defense`` over ``base`` in training, for each epsilon and seed: the ratio at the same robust accuracy.

        Along a run, from snapshot to snapshot, the logarithm of the measure is taken as linear in the accuracy on the
        adversarial images of the measurement; the geometric mean of the ratio is over the accuracies that both pass.
        """
        found, rows = [], self.curvature[~self.curvature["trivial"]]
        for epsilon in self.epsilons:
            for seed in self.table.seeds:
                ways = []
                for name in (defense, base):
                    way = rows[(rows["defense"] == name) & (rows["epsilon"] == epsilon) & (rows["seed"] == seed)]
                    ways.append(way[~way["selected"]].groupby("adversarial")[measure].mean())
                if all(len(way) > 1 and (way > 0).all() for way in ways):
                    low, high = max(way.index.min() for way in ways), min(way.index.max() for way in ways)
                    if high - low >= 5:
                        at = np.linspace(low, high, 51)
                        first, second = (np.interp(at, way.index, np.log(way)) for way in ways)
                        found.append(float(np.exp((first - second).mean())))
        return found

    def grows(self, defense: str) -> dict[str, float] | None:
        """Spearman's correlation of lambda_max with epsilon, without trivial runs, as :func:`ranks`; None if few."""
        cells = {epsilon: self.selected(defense, epsilon)["lambda_max"] for epsilon in self.epsilons}
        radius = [float(Fraction(epsilon)) for epsilon, values in cells.items() for _ in values]
        if len(set(radius)) < 2 or len(radius) < FEW:
            return None
        return ranks(radius, np.concatenate([list(values) for values in cells.values()]))

    def overfitting(self, defense: str) -> pd.Series:
        """Robust validation accuracy (%) lost at the end, run by run: the last five epochs' mean below the five before.

        Not the best epoch's: the largest of many noisy numbers lies above the last one where nothing was lost.
        """
        rows = self.history[self.history["defense"] == defense]
        robust = rows.groupby(RUN)["validation_robust"]
        return 100 * robust.apply(lambda run: run.iloc[-10:-5].mean() - run.iloc[-5:].mean())

    def selected_and_last(self) -> str:
        """Clean / robust accuracy at the selected weights and at the last epoch's, a row a cell: means over seeds."""
        rows = []
        for epsilon in self.epsilons:
            for defense in self.table.defenses:
                if len(cell := self.cell(defense, epsilon)):
                    mean = cell[["clean", "robust", "last_clean", "last_robust"]].mean()
                    rows.append(
                        {
                            "epsilon": epsilon,
                            "defense": defense,
                            "seeds": len(cell),
                            "selected": pair(mean["clean"], mean["robust"]),
                            "last": pair(mean["last_clean"], mean["last_robust"]),
                            "robust: selected - last": signed((cell["robust"] - cell["last_robust"]).mean()),
                        }
                    )
        return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)

    def epochs(self) -> int:
        """Of every run; raises ValueError where they differ."""
        (found,) = self.runs["epochs"].unique()
        return found

    def images(self) -> int:
        """Test images of every run; raises ValueError where they differ."""
        (found,) = self.runs["n"].unique()
        return found

    def absent(self) -> list[str]:
        """Defenses of the table without any run."""
        return [name for name in self.table.defenses if name not in set(self.runs["defense"])]

    def hours(self) -> float:
        """Training and AutoAttack of all runs, one after the other, each as long as its cell's shortest."""
        cells = self.runs.groupby(["defense", "epsilon"])[["train_seconds", "attack_seconds"]]
        return float(cells.transform("min").sum().sum() / 3600)


def read(folder: Path, table: str, kind: str) -> pd.DataFrame:
    """One of a table's csv files; epsilon stays the text that it is."""
    frame = pd.read_csv(folder / f"{table}-{kind}.csv", dtype={"epsilon": str, "letters": str})
    return frame.astype({name: bool for name in ("trivial", "selected") if name in frame})


def pair(clean: float, robust: float, trivial: bool = False, digits: int = 1) -> str:
    """Two accuracies in %, as a table has them."""
    return f"{clean:.{digits}f} / {robust:.{digits}f}{' (t)' if trivial else ''}"


def where(rows: pd.DataFrame, **values: str | list[str]) -> pd.DataFrame:
    """The rows that have in each of these columns the value, or one of the values."""
    for column, wanted in values.items():
        rows = rows[rows[column].isin([wanted] if isinstance(wanted, str) else wanted)]
    return rows


def trivials(cell: pd.DataFrame) -> str:
    """Behind the mean of a cell: how many of its runs are trivial."""
    trivial = int(cell["trivial"].sum())
    return "" if not trivial else " (t)" if trivial == len(cell) else f" ({trivial} t)"


def ranks(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Spearman's ``rho``, its ``p`` and ``n``; p by permutation: the usual one is for many numbers without ties."""
    one, other = (stats.zscore(stats.rankdata(x)) for x in (first, second))

    def rho(shuffled: np.ndarray, axis: int = -1) -> np.ndarray:
        return (shuffled * other).mean(axis=axis)

    rng = np.random.default_rng(0)
    found = stats.permutation_test((one,), rho, permutation_type="pairings", vectorized=True, rng=rng)
    return {"rho": float(found.statistic), "p": float(found.pvalue), "n": len(one)}


def share(count: tuple[int, int]) -> str:
    """What some of all say of the share, as its 95 % interval in % (Clopper and Pearson)."""
    found = stats.binomtest(*count).proportion_ci()
    return f"{100 * found.low:.0f} to {100 * found.high:.0f} %"


def fisher(*counts: tuple[int, int]) -> float:
    """p of Fisher's exact test, that two counts are of one share."""
    return float(stats.fisher_exact([[some, every - some] for some, every in counts]).pvalue)


def interval(found: dict[str, float]) -> str:
    """A difference in points, and its interval."""
    return f"{signed(found['difference'])} [{signed(found['low'])}, {signed(found['high'])}]"


def stands(found: dict[str, float]) -> str:
    """What an interval, by itself, says of the first against the second, in words; level is within MARGIN points."""
    if found["low"] > 0 or found["high"] < 0:
        return "ahead" if found["low"] > 0 else "behind"
    return f"level (within {MARGIN} points)" if found["low"] > -MARGIN and found["high"] < MARGIN else "undecided"


def p_value(p: float, name: str = "") -> str:
    """p to two digits, or that it is small; with its ``name`` as a relation."""
    text = "< 0.001" if p < 0.001 else f"{p:.2g}"
    return text if not name else f"{name} {text}" if p < 0.001 else f"{name} = {text}"


def median(ratios: list[float]) -> float:
    """Of their logarithms, taken back."""
    return math.exp(np.median(np.log(ratios)))


def sign_test(ratios: list[float]) -> float:
    """Two-sided p of as many ratios below 1 as there are."""
    return float(stats.binomtest(sum(ratio < 1 for ratio in ratios), len(ratios)).pvalue)


def middle(ratios: list[float]) -> str:
    """The median of ratios and how many are below 1, with the p of a sign test."""
    below = sum(ratio < 1 for ratio in ratios)
    p = p_value(sign_test(ratios), "sign test p")
    return f"{median(ratios):.2f} (below 1 in {below} of {len(ratios)}, {p})"


def key(run: Run | RunId) -> tuple[str, str, int]:
    """What RUN's columns say of a run."""
    return run.defense, run.epsilon.text, run.seed


def settings_of(study: Study, id: RunId) -> str:
    """What a run's numbers are made of but code, as a short checksum: settings that differ from their defaults."""
    run = study.run(id)
    settings = made_of(run, "train")["settings"] | made_of(run, "evaluate")["settings"]
    own = {name: value for name, value in settings.items() if value != default(run, name)}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]
