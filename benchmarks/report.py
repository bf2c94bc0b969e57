"""How large the report of a large study is, and how soon it can be used in Chromium.

The study is made up for measuring, in a temporary folder: a few real runs on the digits are trained and judged, and
their files are copied to 250 addresses with histories, test images and examples as long as those of CIFAR-10. None of
its numbers is a result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from sat_core.report.page import write_report
from sat_core.runs import data, folder
from sat_core.runs.curvature import curvature
from sat_core.runs.evaluate import evaluate
from sat_core.runs.landscape import landscape
from sat_core.runs.train import train
from sat_core.study import Run, RunId, Study

EPOCHS, IMAGES, SHAPE = 120, 10_000, (3, 32, 32)
DEFENSES, EPSILONS = ["madry", "psat"], ["2/255", "4/255", "8/255", "12/255", "16/255"]
SMALL = {
    "training": {"epochs": 2, "milestones": [1]},
    "attack": {"steps": 2},
    "evaluation": {"images": 60},
    "curvature": {"images": 40, "batch_size": 32},
}
READY = """const [seen] = performance.getEntriesByType("navigation");
return [seen.domInteractive, seen.domContentLoadedEventEnd, seen.loadEventEnd]"""


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=250, metavar="N", help="a multiple of 10 (250)")
    parser.add_argument("--times", type=int, default=9, metavar="N", help="how often the page is opened (9)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        study = made_up(options.runs)
        began = time.perf_counter()
        write_report(study)
        page = (study.folder / "report.html").absolute()
        print(f"{len(study.runs)} runs, made up: {page.stat().st_size / 1e6:.1f} MB")
        print(f"written in {time.perf_counter() - began:.0f} s, tables and figures included")
        measure(page, options.times)


def made_up(runs: int) -> Study:
    """A study of so many runs whose files are those of a few real ones, copied and stretched."""
    table = {"dataset": "digits", "models": ["cnn"], "defenses": DEFENSES, "epsilons": EPSILONS}
    table |= {
        "seeds": list(range(runs // len(DEFENSES) // len(EPSILONS))),
        "curvature": DEFENSES,
        "landscapes": DEFENSES,
    }
    options = [{"where": {"defense": "psat"}, "set": {"options": {"curriculum": {"kind": "steps", "epochs": [0, 1]}}}}]
    Path("large.yaml").write_text(json.dumps({"tables": {"large": table}, "overrides": [{"set": SMALL}, *options]}))
    study = Study("large.yaml")
    originals = {defense: study.run(RunId("digits", "cnn", defense, study.runs[0].epsilon, 0)) for defense in DEFENSES}
    for run in originals.values():
        data.prepare(run)
        for verb in (train, evaluate, curvature, landscape):
            verb(run)
        stretch(run)
    for run in study.runs:
        if run.id != originals[run.defense].id:
            copy(originals[run.defense], run)
    return study


def stretch(run: Run) -> None:
    """Make a run's files as long as those of CIFAR-10; noise stands for its examples, which compress as badly."""
    random = np.random.default_rng(0)
    history, images = pd.read_csv(run.folder / folder.HISTORY), pd.read_csv(run.folder / folder.IMAGES)
    history = history.sample(EPOCHS, replace=True, random_state=0).assign(epoch=range(EPOCHS))
    history["loss"] *= random.uniform(0.9, 1.1, EPOCHS)
    history.to_csv(run.folder / folder.HISTORY, index=False)
    images.sample(IMAGES, replace=True, random_state=0).assign(index=range(IMAGES)).to_csv(
        run.folder / folder.IMAGES, index=False
    )
    with np.load(run.folder / "examples.npz") as file:
        examples = dict(file)
    for name in ("clean", "perturbed"):
        examples[name] = random.uniform(0, 1, (len(examples["label"]), *SHAPE)).astype(np.float32)
    np.savez(run.folder / "examples.npz", **examples)
    for stage in folder.STAGES:
        record(run, stage, folder.record_of(run, stage))


def copy(original: Run, run: Run) -> None:
    """The files of one run at the address of another."""
    shutil.copytree(original.folder, run.folder, ignore=shutil.ignore_patterns(".*"), copy_function=os.link)
    for stage, about in folder.STAGES.items():
        content = folder.record_of(original, stage)
        (run.folder / about.record).unlink()
        record(run, stage, content)


def record(run: Run, stage: str, content: dict) -> None:
    """Write a stage's record anew, as if its files were those of this run and of now."""
    shutil.rmtree(run.folder / folder.KEPT, ignore_errors=True)
    folder.write_record(run, stage, {name: content[name] for name in content.keys() - {"files", "made_of", "run"}})


def measure(page: Path, times: int) -> None:
    """Open the page so many times and print medians, in seconds."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader"):
        options.add_argument(argument)
    found = []
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
        for _ in range(times):
            browser.get("about:blank")
            browser.get(page.as_uri())
            found.append([*(t / 1000 for t in browser.execute_script(READY)), *later(browser)])
    names = ("text and tables", "sorted, filtered", "all loaded", "first chart", "curves of all", "part of a run")
    for name, taken in zip(names, zip(*found, strict=True), strict=True):
        print(f"{name:18} {statistics.median(taken):5.2f} s (least {min(taken):.2f})")


def later(browser) -> list[float]:
    """Seconds from scrolling to a chart, or from opening a run, until it is drawn."""
    taken = []
    for selector in ("[data-chart=plane]", "[data-chart=curves]"):
        began = time.perf_counter()
        browser.execute_script("document.querySelector(arguments[0]).scrollIntoView()", selector)
        taken.append(waited(browser, f"{selector}[data-drawn]", began))
    began = time.perf_counter()
    browser.execute_script("openRun(Object.keys(study.runs)[0])")
    return [*taken, waited(browser, "details.run [data-drawn]", began)]


def waited(browser, selector: str, began: float) -> float:
    while not browser.find_elements("css selector", selector):
        time.sleep(0.01)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
