"""What the report says of a real, small study of which one run is missing and one has failed."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from helpers import MADRY

from sat_core.__main__ import main
from sat_core.report import products
from sat_core.report.page import parts, write_page, write_report
from sat_core.report.page.data import outline
from sat_core.report.page.entries import Entry, describe
from sat_core.report.status import last_words
from sat_core.runs import folder, heartbeat
from sat_core.runs.evaluate import EXAMPLES
from sat_core.runs.files import read_arrays, read_json, write_json
from sat_core.runs.folder import KEPT
from sat_core.runs.network import predict, trained_model
from sat_core.study import Study

PSAT = "digits/cnn/psat/eps0.3/seed0"
KINDS = {
    "data:,",
    *(f"data:{kind}" for kind in ("image/webp", "application/pdf", "text/csv", "text/x-tex", "text/x-bibtex")),
}


def written(study: Study) -> str:
    """The report, made anew."""
    write_report(study)
    return (study.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def page(study):
    return written(study)


def test_it_shows_what_exists_and_says_what_is_missing(study, page):
    assert "<dt>runs complete</dt><dd>2 of 4</dd>" in page
    assert "Small &lt;but&gt; real." in page
    for defense in ("standard", "psat"):
        verdict = read_json(study.run(f"digits/cnn/{defense}/eps0.3/seed0").folder / "autoattack.json")
        assert f"<td>{100 * verdict['clean']:.2f}</td><td>{100 * verdict['robust']:.2f}</td>" in page
    missing = page.partition('id="missing"')[2].partition("</section>")[0]
    assert "train: no result; it ended with “training diverged: the loss is" in missing
    assert "train: not done yet." in missing
    record = read_json(study.run("digits/cnn/psat/eps0.3/seed0").folder / "run.json")
    for value in (
        record["made_of"]["code"]["defenses.psat"],
        record["files"]["model.safetensors"],
        '"relative_step_size":0.25',
    ):
        assert value in page


def test_the_numbers_at_its_top_are_those_of_all_runs(tiny):
    entries = []
    for run, n in zip(tiny.runs, (5, 2), strict=True):
        verdict = {"seconds": {"apgd-ce": 20 * n, "square": 40 * n}}
        entries.append(Entry(run, record={"seconds": 3600 * n}, verdict=verdict, result={"trivial": n == 5}))
    assert parts.facts(entries) == {
        "runs complete": "2 of 2",
        "trivial: learnt nothing": "1 of 2",
        "training, all runs": "7.0 h",
        "AutoAttack, all runs": "7 min",
    }


def test_it_needs_nothing_but_itself_and_can_be_read_aloud(page):
    assert page.startswith("<!DOCTYPE html>\n<html lang=")
    ids = re.findall(' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert {link.partition(";")[0] for link in links if link[0] != "#"} <= KINDS
    assert {link[1:] for link in links if link[0] == "#"} <= set(ids)
    images = re.findall("<img [^>]+>", page)
    assert len(images) == 11
    assert all(re.search('alt="[^"]{40,}"', image) for image in images)


def test_what_others_have_published_reaches_the_page(write_study):
    table = {"dataset": "mnist", "models": ["cnn"], "defenses": ["standard", "madry", "psat"], "epsilons": [0.1, 0.3]}
    found = outline(Study(write_study({"tables": {"mnist": table}})), "mnist")["published"]
    assert found == [["madry", 1, 98.07, 85.47, "paper"], ["psat", 1, 99.16, 92.0, "paper"]]


def test_tables_and_figures_are_saved_from_the_page_as_they_are(study, page):
    saved = re.findall(r'download="([^"]+)" href="data:[^,]+;base64,([^"]+)"', page)
    assert {"digits.csv", "digits.tex", "digits-attacks.csv", "digits-cost.tex", "digits-curves.pdf"} <= {
        n for n, _ in saved
    }
    for name, content in saved:
        (path,) = study.folder.glob(f"*/{name}")
        assert base64.b64decode(content) == path.read_bytes()


def data(page: str, run: str) -> dict:
    """What the page holds of a run."""
    return json.loads(re.search(f'id="data:{run}">(.*?)</script>', page)[1])


def test_the_data_of_a_run_are_its_results(study, page):
    run = study.run(PSAT)
    record, history = folder.trained(run)
    verdict, images = folder.judged(run)
    found = data(page, PSAT)
    assert found["config"] == record["config"]
    assert found["history"]["loss"] == pytest.approx(history["loss"].tolist(), rel=1e-4)
    broken = [found["verdict"]["names"][int(digit)] for digit in found["verdict"]["broken"]]
    assert broken == images["broken_by"].tolist()
    wrong = images[images["prediction"] != images["label"]]
    assert found["verdict"]["wrong"] == wrong["prediction"].tolist()
    assert 100 * broken.count("") / len(broken) == pytest.approx(100 * verdict["robust"])
    planes = read_arrays(run.folder / "landscape.npz")
    assert set(found["landscape"]["planes"]) == {"random", "hessian", "input", "reattacked"}
    for plane, content in found["landscape"]["planes"].items():
        assert np.allclose(content["loss"], planes[f"{plane}_loss"], rtol=1e-4)


def test_settings_are_what_sets_a_run_apart(study, page):
    differing = {name: (usual, own) for name, usual, own in data(page, PSAT)["settings"]}
    curriculum = {"kind": "steps", "epochs": [1], "start": 0.01}
    assert differing == {f"options.curriculum.{name}": (None, value) for name, value in curriculum.items()}
    assert ["training.lr", 0.05, 1e30] in data(page, "digits/cnn/standard/eps0.3/seed1")["settings"]


def test_how_a_run_stands_is_said_where_its_number_is(study):
    run = study.run(PSAT)
    path = run.folder / "run.json"
    record, whole = read_json(path), path.read_bytes()
    assert describe(study, run).state in ("✓ complete", "† trivial")
    for change, said in (
        ({"external": {"file": "w.safetensors", "weights": "ab" * 32, "doubts": []}}, "external"),
        (
            {"accepted": [{"changes": ["a.py changed"], "by": "me", "at": "now", "commit": "c"}]},
            "accepted under other code",
        ),
        ({"made_of": record["made_of"] | {"code": {}}}, "‡ train out of date"),
    ):
        try:
            write_json(path, record | change)
            assert said in describe(study, run).state.split(", ")
            write_page(study, [describe(study, each) for each in study.runs], [])
            page = (study.folder / "report.html").read_text(encoding="utf-8")
            assert said in re.search(f'<tr data-run="{PSAT}">.*?</tr>', page, re.DOTALL)[0]
        finally:
            path.write_bytes(whole)


def test_a_training_under_way_shows_its_epochs_so_far(study):
    run = study.run("digits/cnn/psat/eps0.3/seed1")
    history = run.folder / folder.HISTORY
    history.parent.mkdir(parents=True, exist_ok=True)
    with heartbeat.beating(run, "train"):
        history.write_text("epoch,loss,lambda\n0,2.5,\n")
        entry = describe(study, run)
        assert entry.state == "▸ train running"
        write_page(study, [entry], [])
    history.unlink()
    page = (study.folder / "report.html").read_text(encoding="utf-8")
    assert "train: 1 of 2 epochs are done." in page
    assert data(page, run.id.path)["history"] == {"epoch": [0], "loss": [2.5], "lambda": [None]}


def test_it_never_shows_what_is_no_longer_there(study, page):
    verdict = study.run("digits/cnn/psat/eps0.3/seed0").folder / "autoattack.json"
    content, figure = read_json(verdict), study.folder / "figures/digits-tradeoff.png"
    cells, drawn = f"<td>{100 * content['clean']:.2f}</td><td>{100 * content['robust']:.2f}</td>", figure.read_bytes()
    places = (verdict, verdict.parent / KEPT / verdict.name)
    hidden = [path.rename(path.with_suffix(".hidden")) for path in places]
    without = written(study)
    assert cells in page and cells not in without and figure.read_bytes() != drawn
    for path, place in zip(hidden, places, strict=True):
        path.rename(place)
    assert written(study) == page
    assert figure.read_bytes() == drawn


def test_a_figure_of_complete_runs_is_drawn_again_only_for_other_ones(study):
    text = study.path.read_text()
    complete = text.replace("[0, 1]", "[0]").replace('"seed": 1', '"seed": 0').replace("1e+30", "0.05")
    study.path.write_text(complete.replace('["psat"]', "[]"))  # without the figures that take long
    try:
        complete, figure = Study(study.path), study.folder / "figures/digits-tradeoff.png"
        write_report(complete)
        before = figure.stat().st_mtime_ns
        verdict = complete.run("digits/cnn/psat/eps0.3/seed0").folder / "autoattack.json"
        verdict.touch()
        write_report(complete)
        assert figure.stat().st_mtime_ns == before
        content = read_json(verdict)
        write_json(verdict, content | {"device": "another machine"})
        assert not products.figure(complete, "digits", "tradeoff").is_current()
        write_json(verdict, content)
    finally:
        study.path.write_text(text)


def test_the_log_of_another_seed_says_nothing(study):
    folder = study.folder / "logs/train/digits/cnn/psat/eps0.3"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seed10.log").write_text("of another seed")
    run = study.run("digits/cnn/psat/eps0.3/seed1")
    assert last_words(study, run, "train") == ("", 0.0)
    (folder / "seed1.log").write_bytes(b"epoch 1\r epoch 2\rerror: it failed\r\n\n")
    assert last_words(study, run, "train")[0] == "error: it failed"
    (folder / "seed1.log").unlink()


def test_a_damaged_result_is_told_and_the_rest_is_shown(study, page):
    path = study.run("digits/cnn/psat/eps0.3/seed0").folder / "autoattack.csv"
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    try:
        damaged = written(study)
        assert main(["report", "--study", str(study.path)]) == 2
    finally:
        path.write_bytes(content)
    assert "<dt>runs complete</dt><dd>1 of 4</dd>" in damaged
    assert "autoattack.csv is damaged; delete it and run `evaluate` again." in damaged


def test_a_study_of_which_nothing_exists_has_a_report(write_study):
    page = written(Study(write_study()))
    assert "<dt>runs complete</dt><dd>0 of 2</dd>" in page
    assert page.count("There is no result yet to draw it from.") == 3


def test_a_protocol_may_be_whole_only_with_what_is_said_of_some_runs(write_study, tiny_study, tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/digits.yaml").write_text("data: {source: digits, image: [1, 8, 8], classes: 10}")
    lr = {"where": {"defense": ["madry", "psat"]}, "set": {"training": {"lr": 0.1}}}
    page = written(Study(write_study(tiny_study | {"overrides": [*tiny_study["overrides"], lr]})))
    assert data(page, MADRY)["settings"] == [["training.lr", None, 0.1]]


def test_examples_are_what_the_network_says_of_images_within_the_ball(study):
    run = study.run("digits/cnn/psat/eps0.3/seed0")
    file = read_arrays(run.folder / "examples.npz")
    assert len(set(file["label"])) == EXAMPLES == len(file["clean"])
    moved = np.abs(file["perturbed"] - file["clean"])
    assert 0.29 < moved.max() <= 0.3 + 1e-6
    assert file["perturbed"].min() >= 0 and file["perturbed"].max() <= 1
    model = trained_model(run, torch.device("cpu"))[0]
    for images, predictions in (("clean", "prediction"), ("perturbed", "prediction_perturbed")):
        assert predict(model, torch.from_numpy(file[images])).tolist() == file[predictions].tolist()
