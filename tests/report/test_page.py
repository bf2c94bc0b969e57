"""The report of a real, small study of which one run is missing and one has failed; in Chromium, where there is one."""

import contextlib
import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY

from sat_core.__main__ import main
from sat_core.report.page import last_words, write_report
from sat_core.runs.evaluate import EXAMPLES, evaluate
from sat_core.runs.files import read_arrays, read_json, write_json
from sat_core.runs.folder import KEPT
from sat_core.runs.network import predict, trained_model
from sat_core.runs.train import train
from sat_core.study import Study


def written(study: Study) -> str:
    """The report, made anew."""
    write_report(study)
    return (study.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two runs trained and judged, one diverged, one never begun."""
    content = copy.deepcopy(TINY)
    content["description"] = "Small <but> real."
    content["tables"]["digits"] |= {"defenses": ["standard", "psat"], "seeds": [0, 1]}
    content["overrides"].append({"set": {"evaluation": {"images": 60}}})
    content["overrides"].append({"where": {"defense": "standard", "seed": 1}, "set": {"training": {"lr": 1e30}}})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("study"))
        Path("tiny.yaml").write_text(json.dumps(content))
        study = Study("tiny.yaml")
        for run in study.runs:
            if run.seed == 0:
                train(run)
                evaluate(run)
        log = study.folder / "logs/train/digits/cnn/standard/eps0.3/seed1.log"
        log.parent.mkdir(parents=True)
        with log.open("w") as file, contextlib.redirect_stderr(file):
            assert main(["train", "--study", "tiny.yaml", "--run", "digits/cnn/standard/eps0.3/seed1"]) == 2
        yield study


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
    assert "train: no result; its log ends with “error: training diverged: the loss is" in missing
    assert "train: not done yet." in missing
    record = read_json(study.run("digits/cnn/psat/eps0.3/seed0").folder / "run.json")
    for value in (
        record["made_of"]["code"]["defenses.psat"],
        record["files"]["model.safetensors"],
        "relative_step_size: 0.25",
    ):
        assert value in page


def test_it_needs_nothing_but_itself_and_can_be_read_aloud(page):
    assert page.startswith("<!DOCTYPE html>\n<html lang=")
    ids = re.findall(' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert {link.partition(",")[0] for link in links if link[0] != "#"} == {"data:", "data:image/png;base64"}
    assert {link[1:] for link in links if link[0] == "#"} <= set(ids)
    images = re.findall("<img [^>]+>", page)
    assert len(images) == 3  # no curvature and no landscape was asked for
    assert all(re.search('alt="[^"]{40,}"', image) for image in images)


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


def test_a_figure_of_complete_runs_is_drawn_again_only_for_other_ones(study, page):
    text = study.path.read_text()
    study.path.write_text(text.replace("[0, 1]", "[0]").replace('"seed": 1', '"seed": 0').replace("1e+30", "0.05"))
    try:
        complete, figure = Study(study.path), study.folder / "figures/digits-tradeoff.png"
        write_report(complete)
        before = figure.stat().st_mtime_ns
        write_report(complete)
        assert figure.stat().st_mtime_ns == before
        verdict = complete.run("digits/cnn/psat/eps0.3/seed0").folder / "autoattack.json"
        verdict.touch()
        write_report(complete)
        assert figure.stat().st_mtime_ns == before
        content = read_json(verdict)
        write_json(verdict, content | {"device": "another machine"})
        write_report(complete)
        assert figure.stat().st_mtime_ns > before
        write_json(verdict, content)
    finally:
        study.path.write_text(text)


def test_the_log_of_another_seed_says_nothing(study):
    folder = study.folder / "logs/train/digits/cnn/psat/eps0.3"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seed10.log").write_text("of another seed")
    assert last_words(study, "train", study.run("digits/cnn/psat/eps0.3/seed1")) == "not done yet."


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


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, which records its console and every request."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromium-driver, as Debian packages them")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as browser:
        yield browser


@pytest.fixture
def opened(browser, study, page):
    """The report, opened as a file. Fails if anything but it was asked for, or anything was said on the console."""
    address = (study.folder / "report.html").absolute().as_uri()
    browser.get_log("performance")
    browser.get(address)
    yield browser
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert address in requests
    assert all(url.partition("#")[0] == address or url.startswith("data:") for url in requests)


def column(browser, region, number):
    rows = browser.find_elements("css selector", f"[aria-label='{region}'] tbody tr")
    return [row.find_elements("css selector", "th, td")[number].text for row in rows]


def test_tables_sort_by_mouse_and_by_keyboard_and_back(opened):
    from selenium.webdriver.common.keys import Keys

    buttons = opened.find_elements("css selector", "[aria-label='Runs'] th button")
    number = [button.text for button in buttons].index("Clean (%)")
    original = column(opened, "Runs", number)
    best, worst = sorted((text for text in original if text != "—"), key=float, reverse=True)
    assert best != worst
    head = buttons[number].find_element("xpath", "..")
    for press, state, expected in (
        (buttons[number].click, "descending", [best, worst, "—", "—"]),
        (lambda: buttons[number].send_keys(Keys.ENTER), "ascending", [worst, best, "—", "—"]),
        (lambda: buttons[number].send_keys(Keys.SPACE), "none", original),
    ):
        press()
        assert head.get_attribute("aria-sort") == state
        assert column(opened, "Runs", number) == expected
    buttons[0].click()
    assert column(opened, "Runs", 0) == ["psat", "psat", "standard", "standard"]
    accuracy = opened.find_elements("css selector", "[aria-label='Accuracy, table digits'] thead tr:last-child button")
    assert len(accuracy) == 2


@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_is_wider_than_its_window(opened, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    for scrolling in opened.find_elements("css selector", ".scroll"):
        assert 0 < scrolling.size["width"] <= width and scrolling.get_attribute("tabindex") == "0"


def test_a_link_to_a_run_opens_its_record(opened):
    target = opened.find_element("id", "digits/cnn/psat/eps0.3/seed0")
    assert not target.is_displayed()
    opened.find_element("css selector", "tbody a[href='#digits/cnn/psat/eps0.3/seed0']").click()
    assert target.is_displayed()
