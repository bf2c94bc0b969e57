"""Tables against a count by hand."""

import copy

import pandas as pd
import pytest
from studies import TINY

from sat_core import tables
from sat_core.config import Study
from sat_core.files import checksum, write_json


@pytest.fixture
def judged(write_study):
    """A study of two seeds whose result files are written by hand: 10 images a run."""
    content = copy.deepcopy(TINY)
    content["tables"]["digits"]["seeds"] = [0, 1]
    study = Study(write_study(content))
    labels = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    broken = {
        ("madry", 0): (labels, ["", "", "", "", "", "", "apgd-ce", "apgd-ce", "square", "fab-t"]),
        ("madry", 1): ([*labels[:8], 0, 0], ["", "", "", "", "", "", "", "apgd-t", "clean", "clean"]),
        ("psat", 0): ([1] * 10, ["clean", "", *["clean"] * 8]),
    }  # psat's second seed is missing
    for (defense, seed), (prediction, by) in broken.items():
        folder = study.run(f"digits/cnn/{defense}/eps0.3/seed{seed}").folder
        folder.mkdir(parents=True)
        frame = pd.DataFrame({"index": range(10), "label": labels, "prediction": prediction, "broken_by": by})
        frame.to_csv(folder / "autoattack.csv", index=False)
        files = {"autoattack.csv": checksum(folder / "autoattack.csv")}
        clean, robust = sum(b != "clean" for b in by) / 10, sum(b == "" for b in by) / 10
        write_json(folder / "autoattack.json", {"clean": clean, "robust": robust, "n": 10, "files": files})
    return study


def test_the_table_is_what_one_counts_by_hand(judged):
    table = judged.file.tables["digits"]
    cells = tables.summarise(tables.results(judged, table)).set_index("defense")
    assert cells.loc["madry", "clean"] == pytest.approx((100 + 80) / 2)
    assert cells.loc["madry", "robust"] == pytest.approx((60 + 70) / 2)
    assert cells.loc["madry", "robust_std"] == pytest.approx(50**0.5)
    assert (cells.loc["madry", "seeds"], cells.loc["psat", "seeds"]) == (2, 1)
    assert (cells.loc["madry", "trivial_seeds"], cells.loc["psat", "trivial_seeds"]) == (0, 1)


def test_every_format_shows_the_numbers_and_marks_the_trivial(judged):
    markdown = tables.write_table(judged, "digits")
    text = markdown.read_text()
    assert "| madry     | 90.00 ± 14.14" in text and "65.00 ± 7.07" in text and "10.00 †" in text
    tex = markdown.with_suffix(".tex").read_text()
    assert r"\toprule" in tex and r"90.00 $\pm$ 14.14" in tex and r"\color{red} 10.00$^\dagger$" in tex
    html = markdown.with_suffix(".html").read_text()
    assert "color: red" in html and "10.00 †" in html
    assert pd.read_csv(markdown.with_suffix(".csv"))["robust"].tolist() == pytest.approx([65, 10])


def test_what_is_missing_is_a_dash(write_study):
    study = Study(write_study())
    assert "| madry     | –" in tables.write_table(study, "digits").read_text()


def test_trivial_means_constant_or_no_better():
    balanced = pd.DataFrame({"label": [0, 1] * 50, "prediction": [0] * 100})
    assert tables.is_trivial(balanced)
    assert tables.is_trivial(balanced.assign(prediction=[0, 0, 1, 1] * 25))
    assert not tables.is_trivial(balanced.assign(prediction=balanced["label"]))
