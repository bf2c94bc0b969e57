"""Which defense beats which: against counts by hand, closed testing, closed forms, and how often chance deceives it."""

import itertools
import math

import numpy as np
import pytest
from helpers import write_run
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sat_core.__main__ import main
from sat_core.report import comparisons, products
from sat_core.study import Study

LABELS = list(range(10))


@pytest.fixture
def three(write_study, tiny_study):
    """Two seeds of three defenses, of which one has a single seed."""
    tiny_study["tables"]["digits"] |= {"defenses": ["madry", "trades", "psat"], "seeds": [0, 1]}
    study = Study(write_study(tiny_study))
    broken = {("madry", 0): 6, ("madry", 1): 4, ("trades", 0): 2, ("psat", 0): 3, ("psat", 1): 3}
    for (defense, seed), count in broken.items():
        by = ["apgd-ce"] * count + [""] * (10 - count)
        write_run(study.run(f"digits/cnn/{defense}/eps0.3/seed{seed}"), LABELS, by)
    return study


def test_differences_are_of_the_seeds_and_images_that_both_have(three):
    found = comparisons.compare(three, "digits").set_index(["accuracy", "row", "column"]).sort_index()
    assert found.loc[("robust", "madry", "psat"), ["difference", "images", "seeds"]].tolist() == [-20.0, 10, 2]
    assert found.loc[("robust", "madry", "trades"), ["difference", "seeds"]].tolist() == [-40.0, 1]
    assert found.loc[("robust", "trades", "psat"), "difference"] == pytest.approx(10)
    assert (found.loc["clean", "difference"] == 0).all() and (found.loc["clean", "p_holm"] == 1).all()
    assert (found["low"] <= found["difference"]).all() and (found["difference"] <= found["high"]).all()
    assert (found["p_holm"] >= found["p"]).all()


def test_pairs_that_are_not_judged_yet_count_in_the_correction(three):
    found = comparisons.compare(three, "digits")
    robust = found[found["accuracy"] == "robust"].sort_values("p")
    for path in three.run("digits/cnn/trades/eps0.3/seed0").folder.iterdir():
        path.unlink()
    (alone,) = comparisons.compare(three, "digits").query("accuracy == 'robust'").itertuples()
    assert len(robust) == 3 and alone.p_holm == min(3 * alone.p, 1)
    assert "for all 3 pairs" in comparisons.sheet(three, "digits").note


def test_the_table_reads_from_row_to_column_and_a_trivial_row_beats_none(three):
    cells = comparisons.sheet(three, "digits").cells
    assert cells.iloc[0, 2].text == "−20.0" and cells.iloc[2, 0].text == "+20.0" and cells.iloc[1, 1].text == ""
    run = three.run("digits/cnn/madry/eps0.3/seed0")
    found = comparisons.compare(three, "digits")
    for path in run.folder.iterdir():
        path.unlink()
    run.folder.rmdir()
    write_run(run, [1] * 10, ["clean", "", *["clean"] * 8])
    cells = comparisons.sheet(three, "digits").cells
    assert all(cell.trivial and not cell.best for cell in cells.iloc[0, 1:])
    assert not comparisons.compare(three, "digits").equals(found)


def test_nothing_is_sure_against_a_trivial_classifier(write_study, tiny_study):
    tiny_study["tables"]["digits"]["seeds"] = [0, 1]
    study = Study(write_study(tiny_study))
    answers = {"madry": ([1] * 10, ["clean", "", *["clean"] * 8]), "psat": (LABELS, [""] * 10)}
    for defense, seed in itertools.product(answers, (0, 1)):
        write_run(study.run(f"digits/cnn/{defense}/eps0.3/seed{seed}"), *answers[defense])
    cells = comparisons.sheet(study, "digits").cells
    assert cells.iloc[1, 0].text == "+90.0" and not cells.iloc[1, 0].best and not cells.iloc[1, 0].trivial
    assert (comparisons.compare(study, "digits")["p_holm"] < comparisons.LEVEL).all()


def test_a_large_difference_is_bold_if_two_seeds_have_it(write_study, tiny_study):
    tiny_study["tables"]["digits"]["seeds"] = [0, 1]
    study = Study(write_study(tiny_study))
    for seeds in (1, 2):
        for defense, by in (("madry", ["apgd-ce"] * 10), ("psat", [""] * 10)):
            write_run(study.run(f"digits/cnn/{defense}/eps0.3/seed{seeds - 1}"), LABELS, by)
        cells = comparisons.sheet(study, "digits").cells
        assert cells.iloc[1, 0].plain == "+100.0"
        assert cells.iloc[1, 0].best == (seeds == 2) and not cells.iloc[0, 1].best


def test_of_one_defense_there_is_nothing_to_compare(write_study, tiny_study, capsys):
    assert "tables/digits-comparisons" in products.of(Study(write_study(tiny_study)))
    tiny_study["tables"]["digits"]["defenses"] = ["psat"]
    path = write_study(tiny_study)
    assert "tables/digits-comparisons" not in products.of(Study(path))
    assert main(["compare", "--study", str(path), "--table", "digits"]) == 2
    assert "table digits has one defense: nothing to compare" in capsys.readouterr().err


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferronis(p):
    """A hypothesis is rejected where every set of hypotheses that holds it is, each by Bonferroni's test."""
    corrected = comparisons.holm(np.array(p))
    for i in range(len(p)):
        others = [j for j in range(len(p)) if j != i]
        sets = [(i, *more) for size in range(len(p)) for more in itertools.combinations(others, size)]
        worst = max(len(held) * min(p[j] for j in held) for held in sets)
        assert corrected[i] == pytest.approx(min(1.0, worst))


def test_p_is_the_level_at_which_the_interval_ends_at_nothing(monkeypatch):
    random = np.random.default_rng(1)
    d = random.choice([-1, 0, 0, 1, 1], (200, 3))
    p = comparisons.difference(d)["p"]
    monkeypatch.setattr(comparisons, "LEVEL", p)
    assert comparisons.difference(d)["low"] == pytest.approx(0, abs=1e-6)


def test_with_one_seed_the_interval_is_that_of_agresti_and_min_around_the_difference():
    n, b, c = 400, 30, 12
    d = np.array([1] * b + [-1] * c + [0] * (n - b - c))[:, None]
    found = comparisons.difference(d)
    b, c, n = b + 0.5, c + 0.5, n + 2
    half = 196 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    assert found["high"] - found["difference"] == pytest.approx(half, rel=0.01)
    assert found["p"] < 0.05
    same = comparisons.difference(np.zeros((400, 1)))
    assert same["p"] == 1 and -1 < same["low"] < 0 < same["high"] < 1


def verdicts(random: np.random.Generator, seed_std: float, images: int, seeds: int, skill: float) -> np.ndarray:
    """Differences of two defenses (images, seeds): they fail on the same difficult images, and their seeds differ."""
    difficulty = random.beta(1.4, 0.6, images) / 2
    networks = random.normal([[skill], [0.0]], seed_std, (2, seeds))
    right = random.random((2, images, seeds)) < np.clip(difficulty[:, None] + networks[:, None], 0, 1)
    return right[0].astype(float) - right[1]


@pytest.mark.parametrize(
    ("seed_std", "images", "seeds"), [(0.0, 200, 3), (0.08, 200, 3), (0.03, 2000, 3), (0.03, 2000, 2)]
)
def test_chance_deceives_it_no_more_often_than_promised_and_truth_is_found(seed_std, images, seeds):
    random = np.random.default_rng(0)
    equal, better = (
        np.array([comparisons.difference(verdicts(random, seed_std, images, seeds, skill))["p"] for _ in range(400)])
        for skill in (0.0, 0.4)
    )
    assert np.mean(equal < comparisons.LEVEL) <= 0.065
    assert seeds == 2 or np.mean(better < comparisons.LEVEL) > 0.75


def test_satterthwaites_degrees_of_freedom_would_be_deceived_by_two_seeds():
    random, images, seeds, deceived = np.random.default_rng(0), 2000, 2, 0
    for _ in range(400):
        d = verdicts(random, 0.03, images, seeds, 0.0)
        of_images, of_seeds = d.mean(axis=1).var(ddof=1) / images, d.mean(axis=0).var(ddof=1) / seeds
        freedom = (of_images + of_seeds) ** 2 / (of_images**2 / (images - 1) + of_seeds**2 / (seeds - 1))
        deceived += 2 * stats.t.sf(abs(d.mean()) / math.sqrt(of_images + of_seeds), freedom) < comparisons.LEVEL
    assert deceived > 0.08 * 400


def test_where_a_training_collapses_or_not_three_seeds_hide_it():
    random, images, seeds, collapses, missed = np.random.default_rng(0), 500, 3, 0.9, 0
    truth = 0.8 - (1 - collapses) * 0.83 - collapses * 0.1
    for _ in range(400):
        base = np.where(random.random(seeds) < collapses, 0.1, 0.83)
        right = random.random((2, images, seeds)) < np.array([np.full(seeds, 0.8), base])[:, None]
        found = comparisons.difference(right[0].astype(float) - right[1])
        missed += not found["low"] <= 100 * truth <= found["high"]
    assert missed > 0.4 * 400
