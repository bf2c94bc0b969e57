"""Tables against counts by hand, against committed result files, and through LaTeX."""

import copy
import csv
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import MADRY, TINY, write_run

from sat_core.__main__ import main
from sat_core.errors import ConfigError
from sat_core.report import comparisons, latex, numbers, render, tables
from sat_core.report import references as refs
from sat_core.runs import folder
from sat_core.runs.files import read_json, write_json
from sat_core.runs.trivial import is_trivial
from sat_core.study import Study, defense_names, usual_names

GOLDEN = Path(__file__).parent / "golden"
LABELS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
CONSTANT = ([1] * 10, ["clean", "", *["clean"] * 8])
"""What AutoAttack says of a network that always answers 1."""


@pytest.fixture
def judged(write_study):
    """A study of two seeds whose result files are written by hand; psat's second seed is missing."""
    content = copy.deepcopy(TINY)
    content["tables"]["digits"]["seeds"] = [0, 1]
    study = Study(write_study(content))
    broken = {
        ("madry", 0): (LABELS, ["", "", "", "", "", "", "apgd-ce", "apgd-ce", "square", "fab-t"]),
        ("madry", 1): ([*LABELS[:8], 0, 0], ["", "", "", "", "", "", "", "apgd-t", "clean", "clean"]),
        ("psat", 0): CONSTANT,
    }
    for (defense, seed), (predictions, by) in broken.items():
        write_run(study.run(f"digits/cnn/{defense}/eps0.3/seed{seed}"), predictions, by, 2 if defense == "madry" else 1)
    return study


@pytest.fixture
def mnist(write_study):
    """A study of the paper's first table with two of its runs, as bad as one another."""
    table = {"dataset": "mnist", "models": ["cnn"], "defenses": ["madry", "psat"], "epsilons": [0.3, "0.450"]}
    study = Study(write_study({"tables": {"mnist": table}}))
    write_run(study.run("mnist/cnn/madry/eps0.450/seed0"), *CONSTANT)
    write_run(study.run("mnist/cnn/psat/eps0.3/seed0"), LABELS, ["apgd-ce", *[""] * 9])
    return study


def sheets(study: Study) -> list[render.Sheet]:
    (name,) = study.file.tables
    return list(tables.sheets(study, name).values())


def test_the_table_is_what_one_counts_by_hand(judged):
    accuracy, attacks, cost = (sheet.data for sheet in sheets(judged))
    cells = accuracy.set_index(["defense", "accuracy"])
    assert cells.loc[("madry", "clean"), "mean"] == pytest.approx((100 + 80) / 2)
    assert cells.loc[("madry", "robust"), "mean"] == pytest.approx((60 + 70) / 2)
    assert cells.loc[("madry", "robust"), "std"] == pytest.approx(50**0.5)
    assert cells["seeds"].tolist() == [2, 2, 1, 1]
    assert cells["trivial_seeds"].tolist() == [0, 0, 1, 1]
    after = attacks[attacks["defense"] == "madry"].set_index("accuracy")
    assert after["mean"].to_dict() == pytest.approx(
        {"clean": 90, "apgd-ce": (80 + 80) / 2, "apgd-t": (80 + 70) / 2, "fab-t": (70 + 70) / 2, "robust": 65}
    )
    assert after["seconds"].tolist()[1:] == [1.5] * 4 and math.isnan(after["seconds"]["clean"])
    means = cost.set_index(["defense", "measure"])["mean"]
    assert means["madry"].to_dict() == {"epoch_seconds": 4, "steps": 2, "steps_saved": 0, "memory": 700}
    assert means["psat"].to_dict() == {"epoch_seconds": 4, "steps": 1, "steps_saved": 50, "memory": 700}


def test_every_format_shows_the_numbers_marks_the_trivial_and_bolds_the_best(judged):
    markdown, attacks, cost = tables.write_table(judged, "digits")
    text = markdown.read_text()
    assert "| Madry et al. [2018] | **90.00 ± 14.14**" in text and "**65.00 ± 7.07**" in text and "| 10.00 †" in text
    assert re.search(r"↳ seeds +\| 1 ", text) and "1 of 4 runs is missing" in text
    tex = markdown.with_suffix(".tex").read_text()
    assert r"\toprule" in tex and r"\bfseries 90.00 \pm 14.14 &" in tex
    assert r"& \color{red} 10.00 {\rlap{$^\dagger$}}" in tex and "S[table-format=2.2(4)]" in tex
    html = markdown.with_suffix(".html").read_text()
    assert "<strong>90.00 ± 14.14</strong>" in html and '<span style="color: #c00000">10.00 †</span>' in html
    assert re.search(
        r"ε = 0.3 +\| Madry et al. \[2018\] +\| 90.00 ± 14.14 +\| 80.00 ± 0.00 .* \| 6.0 ", attacks.read_text()
    )
    assert re.search(r"ε = 0.3 +\| P-SAT +\| 4.00 +\| 1.00 +\| 50.0 +\| 700 ", cost.read_text())


def test_the_last_epoch_is_compared_with_the_selected_one_of_the_same_seeds(judged):
    path = judged.run("digits/cnn/madry/eps0.3/seed1").folder / "autoattack.json"
    record = read_json(path)
    write_json(path, record | {"last": {"clean": record["clean"], "robust": record["robust"] - 0.1}})
    clean, robust = (sheets(judged)[0].cells.loc["Madry et al. [2018]", ("ε = 0.3", at)] for at in ("Clean", "Robust"))
    assert clean.below["last epoch"] == "80.00 (+0.00, 1 of 2 seeds)"
    assert robust.below["last epoch"] == "60.00 (−10.00, 1 of 2 seeds)"


def test_an_interval_is_of_the_fewest_images_that_a_seed_was_judged_on(judged):
    path = judged.run(MADRY).folder / "autoattack.json"
    write_json(path, read_json(path) | {"n": 10_000})
    assert sheets(judged)[0].data["test_images"].tolist() == [10, 10, 10, 10]


def test_a_cell_with_fewer_seeds_is_named_where_no_line_tells(judged):
    content = yaml.safe_load(judged.path.read_text())
    content["tables"]["digits"]["style"] = "paper"
    judged.path.write_text(yaml.safe_dump(content))
    paper, *others = sheets(Study(judged.path))
    assert "mean over up to 2 seeds" in paper.note
    for sheet in (paper, *others):
        assert "1 of 4 runs is missing. Cells of fewer seeds: psat, ε = 0.3 (1 of 2)." in sheet.note


def test_a_trivial_run_is_never_the_best(judged):
    for seed in (0, 1):
        path = judged.run(f"digits/cnn/madry/eps0.3/seed{seed}").folder
        shutil.rmtree(path)
        write_run(judged.run(f"digits/cnn/madry/eps0.3/seed{seed}"), LABELS, ["apgd-ce"] * 10)
    cells = sheets(judged)[0].cells[("ε = 0.3", "Robust")]
    assert (cells["Madry et al. [2018]"].text, cells["Madry et al. [2018]"].best) == ("0.00", True)
    assert (cells["P-SAT"].text, cells["P-SAT"].best) == ("10.00", False)


def test_what_is_missing_is_a_dash(write_study):
    paths = tables.write_table(Study(write_study()), "digits")
    assert "| Madry et al. [2018] | —" in paths[0].read_text()
    for path in paths:
        assert "—" in path.read_text() and "2 of 2 runs are missing" in path.read_text()
        assert "---" in path.with_suffix(".tex").read_text()


def test_a_verdict_on_other_weights_is_not_shown(judged):
    path = judged.run("digits/cnn/psat/eps0.3/seed0").folder / "run.json"
    record = read_json(path)
    record["files"]["model.safetensors"] = "of another training"
    write_json(path, record)
    assert "2 of 4 runs are missing" in sheets(judged)[0].note


def test_memory_of_a_gpu_has_a_column_if_there_was_one(judged):
    assert "GPU memory (MB)" not in sheets(judged)[2].cells
    path = judged.run("digits/cnn/psat/eps0.3/seed0").folder / "run.json"
    write_json(path, read_json(path) | {"peak_memory_mb": {"main": 700.0, "gpu": 1234.5}})
    assert sheets(judged)[2].cells["GPU memory (MB)"].map(lambda cell: cell.text).tolist() == ["n/a", "1234"]


def test_a_damaged_history_is_told(judged):
    path = judged.run("digits/cnn/madry/eps0.3/seed0").folder / "history.csv"
    path.write_text("")
    with pytest.raises(ConfigError, match=r"history\.csv is damaged"):
        numbers.histories(judged, judged.file.tables["digits"])


def test_the_paper_stands_beside_ours_with_the_difference(mnist):
    accuracy, attacks, _ = sheets(mnist)
    assert accuracy.cells.at["P-SAT", ("ε = 0.3", "Clean")].below["paper"] == "99.16 (+0.84)"
    assert accuracy.cells.at["P-SAT", ("ε = 0.3", "Robust")].below["paper"] == "92.00 (−2.00)"
    assert accuracy.cells.at["Madry et al. [2018]", ("ε = 0.450", "Robust")].below["paper"] == "11.22 † (−1.22)"
    assert accuracy.cells.at["Madry et al. [2018]", ("ε = 0.3", "Clean")] == render.Cell(below={"paper": "98.07"})
    assert accuracy.note.count("AISec 2021") == 1
    assert attacks.cells.at[("ε = 0.3", "P-SAT"), "APGD-CE"].below["predecessor"] == "93.16 (−3.16)"
    assert "chawins/ates-minimal" in attacks.note
    cells = accuracy.data.set_index(["defense", "epsilon", "accuracy"])
    assert cells.loc[("psat", "0.3", "robust"), "difference"] == pytest.approx(-2)
    text, tex = render.markdown(accuracy), latex.latex(accuracy, "mnist")
    assert "↳ paper" in text and r"{\scriptsize 92.00 ($-$2.00)}" in tex


def test_with_one_seed_the_interval_is_wilsons():
    p, n, z = 0.9, 200, 1.959963985
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = [100 * (centre - half) / (1 + z**2 / n), 100 * (centre + half) / (1 + z**2 / n)]
    assert numbers.interval(90, math.nan, 1, n) == pytest.approx(expected)
    assert numbers.interval(0, math.nan, 1, n)[0] == 0 < numbers.interval(0, math.nan, 1, n)[1]
    assert numbers.interval(100, math.nan, 1, n)[1] == 100


@pytest.mark.parametrize(("seed_std", "images"), [(0.0, 100), (0.04, 100), (0.04, 5000), (0.01, 1000)])
def test_the_interval_holds_the_truth_95_times_in_a_hundred_or_more(seed_std, images):
    """Networks of random skill (over seeds) on shared images of random difficulty; the truth is the mean of both."""
    random, truth, seeds, hits = np.random.default_rng(0), 0.7, 3, 0
    for _ in range(400):
        difficulty = random.beta(1.4, 0.6, images)  # mean 0.7: the seeds largely fail on the same images
        skill = random.normal(0, seed_std, (seeds, 1))
        right = random.random((seeds, images)) < np.clip(difficulty + skill, 0, 1)
        accuracy = 100 * right.mean(axis=1)
        low, high = numbers.interval(accuracy.mean(), accuracy.std(ddof=1), seeds, images)
        hits += low <= 100 * truth <= high
    assert hits >= 0.93 * 400


@pytest.fixture
def golden(tmp_path, monkeypatch):
    """Five real runs (see golden.yaml beside them), on record as made by the present code."""
    shutil.copytree(GOLDEN, tmp_path / "golden")
    monkeypatch.chdir(tmp_path / "golden")
    study = Study("golden.yaml")
    for run in study.runs:
        for stage in ("train", "evaluate"):
            if record := folder.record_of(run, stage):
                write_json(run.folder / folder.STAGES[stage].record, record | {"made_of": folder.present(run, stage)})
    return study


def test_real_results_give_the_committed_tables_in_every_byte(golden):
    made = [*tables.write_table(golden, "digits"), comparisons.write_comparisons(golden, "digits")]
    written = [path for path in made for path in path.parent.glob(f"{path.stem}.*")]
    assert len(written) == 16
    content = {path: path.read_bytes() for path in written}
    tables.write_table(golden, "digits")
    comparisons.write_comparisons(golden, "digits")
    assert {path: path.read_bytes() for path in written} == content
    for expected in (GOLDEN / "tables").iterdir():
        assert (golden.folder / "tables" / expected.name).read_text() == expected.read_text()
    assert len(list((GOLDEN / "tables").iterdir())) == 8


def test_results_of_other_settings_or_code_are_marked_and_the_note_says_why(judged):
    run = judged.run(MADRY)
    path = run.folder / "run.json"
    record = read_json(path)
    record["made_of"]["settings"]["training.lr"] = 0.5
    write_json(path, record)
    accuracy = sheets(judged)[0]
    assert accuracy.cells.at["Madry et al. [2018]", ("ε = 0.3", "Clean")].plain == "90.00 ± 14.14 ‡"
    assert (
        "‡ of other settings or code than the present: madry, ε = 0.3, seed 0 (training.lr 0.5 -> 0.05)."
        in accuracy.note
    )
    assert accuracy.data["stale_seeds"].tolist() == [1, 1, 0, 0]
    cost, differences = sheets(judged)[2], comparisons.sheet(judged, "digits")
    assert [cell.stale for cell in cost.cells["PGD steps"]] == [True, False]
    assert all("‡ of other settings" in sheet.note for sheet in (cost, differences))
    assert differences.cells.iloc[0, 1].stale and differences.cells.iloc[1, 0].stale
    del record["made_of"]
    write_json(path, record)
    assert "madry, ε = 0.3, seed 0 (it is of an earlier version of sat_core)" in sheets(judged)[0].note


def test_the_committed_tables_are_what_a_plain_recount_of_the_images_gives(golden):
    committed = pd.read_csv("tables/digits.csv").set_index(["defense", "accuracy"])
    for defense, seeds in (("madry", (0, 1)), ("hsat", (0,)), ("psat", (0, 1))):
        clean, robust = [], []
        for seed in seeds:
            path = golden.run(f"digits/cnn/{defense}/eps0.3/seed{seed}").folder / "autoattack.csv"
            rows = list(csv.DictReader(path.open()))
            clean.append(sum(row["label"] == row["prediction"] for row in rows))
            robust.append(sum(row["broken_by"] == "" for row in rows))
            assert len(rows) == 100  # so that a count is a percentage
        for name, counts in (("clean", clean), ("robust", robust)):
            cell = committed.loc[(defense, name)]
            assert cell["mean"] == pytest.approx(sum(counts) / len(counts)) and cell["seeds"] == len(seeds)
            if len(counts) == 2:
                assert cell["std"] == pytest.approx(abs(counts[0] - counts[1]) / math.sqrt(2))
    assert committed.loc["trades", "mean"].isna().all()


def tex_has(style: str) -> bool:
    """Whether LaTeX is here, with a style file."""
    return bool(shutil.which("pdflatex")) and subprocess.run(["kpsewhich", style], capture_output=True).returncode == 0


def typeset(folder: Path, documentclass: str, body: str) -> str:
    """What LaTeX says of a document, which it must accept."""
    packages = r"\usepackage{booktabs,graphicx,siunitx,xcolor}"
    document = rf"\documentclass{documentclass}{packages}\begin{{document}}{body}\end{{document}}"
    (folder / "paper.tex").write_text(document)
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stdout
    assert (folder / "paper.pdf").read_bytes().startswith(b"%PDF")
    return result.stdout


def test_the_note_says_that_bold_goes_by_network_and_a_label_is_of_its_study(write_study):
    table = {"dataset": "cifar10", "models": ["preactresnet18"], "defenses": ["madry", "psat"], "epsilons": ["8/255"]}
    for models, said in ((["preactresnet18"], "column,"), (["preactresnet18", "vgg16bn"], "column for its network,")):
        name = f"of-{len(models)}"
        study = Study(write_study({"tables": {"main": table | {"models": models}}}, name))
        for run in study.runs:
            write_run(run, LABELS, ["apgd-ce"] + [""] * 9)
        written = tables.write_table(study, "main")[0]
        assert f"Bold is the best of a {said}" in written.read_text()
        assert rf"\label{{tab:{name}-main}}" in written.with_suffix(".tex").read_text()


@pytest.mark.skipif(not tex_has("siunitx.sty"), reason="siunitx is not installed (texlive-science)")
@pytest.mark.parametrize("documentclass", ["{article}", "[twocolumn]{article}"])
def test_latex_sets_every_table_within_the_line(documentclass, golden, mnist, write_study, tmp_path, monkeypatch):
    table = {"dataset": "cifar10", "models": ["preactresnet18", "wrn-34-10"], "defenses": ["psat"], "seeds": [0, 1, 2]}
    table |= {"epsilons": ["2/255", "4/255", "8/255"], "caption": r"A wide one: 100 % & $ # _ { } ~ ^ \ [<|>]"}
    wide = Study(write_study({"tables": {"wide": table, "plain": table | {"style": "paper"}}}, "wide"))
    for id in wide.file.tables["wide"].run_ids:
        write_run(wide.run(id), LABELS, ["apgd-ce"] * (id.seed + 1) + [""] * (9 - id.seed))
    files = []
    for study, here in ((wide, tmp_path), (mnist, tmp_path), (golden, tmp_path / "golden")):
        monkeypatch.chdir(here)
        for name, asked in study.file.tables.items():
            files += [path.with_suffix(".tex").resolve() for path in tables.write_table(study, name)]
            if len(asked.defenses) > 1:
                files.append(comparisons.write_comparisons(study, name).with_suffix(".tex").resolve())
    said = typeset(tmp_path, documentclass, "\n".join(rf"\input{{{path}}}\clearpage" for path in files))
    assert len(files) == 6 + 4 + 4
    assert "Overfull" not in said and "Missing character" not in said and "too large for page" not in said


@pytest.mark.skipif(not (tex_has("siunitx.sty") and shutil.which("bibtex")), reason="LaTeX or siunitx is not installed")
def test_every_work_can_be_cited(tmp_path):
    shutil.copy(refs.REFERENCES, tmp_path / "all.bib")
    typeset(tmp_path, "{article}", r"Works\nocite{*}\bibliographystyle{plain}\bibliography{all}")
    said = subprocess.run(["bibtex", "paper"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "Warning" not in said and "error" not in said
    typeset(tmp_path, "{article}", r"Works\nocite{*}\bibliographystyle{plain}\bibliography{all}")


def test_a_study_cites_what_it_shows_and_every_defense_has_a_name(judged, mnist, write_study, tiny_study):
    cited = re.findall(r"@\w+{(\w+),", refs.references(judged))
    assert sorted(cited) == sorted(["sitawarin2021", "madry2018", "croce2020", "zou2008", "holm1979"])
    tiny_study["tables"]["digits"] |= {"defenses": ["trades"], "landscapes": ["trades"]}
    tiny_study["overrides"] = [{"set": {"training": {"awp": {"gamma": 0.01}}}}]
    cited = re.findall(r"@\w+{(\w+),", refs.references(Study(write_study(tiny_study))))
    assert sorted(cited) == sorted(["sitawarin2021", "zhang2019", "croce2020", "zou2008", "li2018", "wu2020"])
    known = set(re.findall(r"^@\w+{(\w+),", refs.REFERENCES.read_text(), re.MULTILINE))
    assert usual_names().keys() == defense_names()
    assert {entry["work"] for entry in usual_names().values() if "work" in entry} <= known


def test_the_papers_layout_has_means_alone_in_its_order(mnist, write_study):
    content = yaml.safe_load(mnist.path.read_text())
    content["tables"]["mnist"]["style"] = "paper"
    sheet = sheets(Study(write_study(content)))[0]
    assert list(sheet.cells.columns) == [(f"ε = {e}", name) for e in ("0.3", "0.450") for name in ("Clean", "Adv")]
    assert list(sheet.cells.index) == ["Madry et al. [2018]", "P-SAT"]
    assert [cell.plain for cell in sheet.cells.loc["P-SAT"]] == ["100.00", "90.00", "—", "—"]
    assert not any(cell.spread or cell.below for cell in sheet.cells.to_numpy().flat)


def test_ordinary_training_is_never_bold_and_every_note_is_sentences(write_study, tiny_study):
    tiny_study["tables"]["digits"] |= {"defenses": ["standard", "madry", "psat"], "caption": "Digits"}
    study = Study(write_study(tiny_study))
    for defense, broken in (("standard", 0), ("madry", 1), ("psat", 2)):
        write_run(study.run(f"digits/cnn/{defense}/eps0.3/seed0"), LABELS, ["square"] * broken + [""] * (10 - broken))
    accuracy = sheets(study)[0]
    assert [cell.best for cell in accuracy.cells["ε = 0.3", "Robust"]] == [False, True, False]
    assert "training without an attack aside" in accuracy.note
    path = study.run(MADRY).folder / "run.json"
    write_json(path, read_json(path) | {"attacked": False})  # as of a defense of one's own
    assert [cell.best for cell in sheets(study)[0].cells["ε = 0.3", "Robust"]] == [False, False, True]
    for sheet in [*sheets(study), comparisons.sheet(study, "digits")]:
        assert sheet.note.startswith("Digits. ") and sheet.note.endswith(".")


def test_many_old_runs_leave_a_caption_that_can_be_read(judged):
    for run in judged.runs[:3]:
        path = run.folder / "run.json"
        record = read_json(path)
        write_json(path, record | {"made_of": record["made_of"] | {"code": {}}})
    note = sheets(judged)[0].note
    assert "; and 1 more." in note and note.count("seed") < 8


def test_one_command_writes_all_tables_of_a_study(judged, capsys):
    assert main(["table", "--study", str(judged.path)]) == 0
    assert "90.00 ± 14.14" in capsys.readouterr().out
    assert len(list((judged.folder / "tables").glob("digits*"))) == 12
    assert main(["table", "--study", str(judged.path), "--table", "digit"]) == 2
    assert "did you mean 'digits'?" in capsys.readouterr().err


def test_two_tables_may_not_write_the_same_file(write_study):
    digits = TINY["tables"]["digits"]
    with pytest.raises(ConfigError, match="'digits-cost' is a file of table 'digits'"):
        Study(write_study({"tables": {"digits": digits, "digits-cost": digits}}))


def test_html_of_a_caption_is_text(write_study):
    content = copy.deepcopy(TINY)
    content["tables"]["digits"]["caption"] = "<script>1 < 2 & 3</script>"
    page = render.as_html(sheets(Study(write_study(content)))[0], "digits")
    assert "&lt;script&gt;1 &lt; 2 &amp; 3" in page and "<script>" not in page


def test_trivial_means_constant_or_no_better():
    balanced = pd.DataFrame({"label": [0, 1] * 50, "prediction": [0] * 100})
    assert is_trivial(balanced)
    assert is_trivial(balanced.assign(prediction=[0, 0, 1, 1] * 25))
    assert not is_trivial(balanced.assign(prediction=balanced["label"]))


def test_the_note_says_which_network_was_selected_before_its_method_begins(judged):
    path = judged.run(MADRY).folder / "run.json"
    for best, begins, told in ((4, 5, True), (5, 5, False)):
        write_json(path, read_json(path) | {"best_epoch": best, "begins": begins})
        assert ("and so without them: madry, ε = 0.3, seed 0." in sheets(judged)[0].note) == told


def test_the_note_says_what_was_not_judged_in_float32(judged):
    assert not any("float32" in sheet.note for sheet in sheets(judged))
    path = judged.run("digits/cnn/madry/eps0.3/seed1").folder / "autoattack.json"
    write_json(path, read_json(path) | {"precision": "tf32"})
    assert "Judged 1 of 3 runs in tf32, not float32." in sheets(judged)[0].note
