"""A real, small study of which one run is missing and one has failed, and Chromium, where there is one."""

import contextlib
import copy
import json
import shutil
from pathlib import Path

import pytest
from helpers import TINY

from sat_core.__main__ import main
from sat_core.runs.curvature import curvature
from sat_core.runs.evaluate import evaluate
from sat_core.runs.landscape import landscape
from sat_core.runs.train import train
from sat_core.study import Study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two runs trained and judged, one of them measured, too; one diverged, one never begun."""
    content = copy.deepcopy(TINY)
    content["description"] = "Small <but> real."
    content["tables"]["digits"] |= {"defenses": ["standard", "psat"], "seeds": [0, 1]}
    content["tables"]["digits"] |= {"curvature": ["psat"], "landscapes": ["psat"]}
    small = {"curvature": {"images": 40, "batch_size": 32}, "landscape": {"points": 5, "reattack": 3}}
    content["overrides"].append({"set": {"evaluation": {"images": 60}, **small}})
    content["overrides"].append({"where": {"defense": "standard", "seed": 1}, "set": {"training": {"lr": 1e30}}})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("study"))
        Path("tiny.yaml").write_text(json.dumps(content))
        study = Study("tiny.yaml")
        for run in study.runs:
            if run.seed == 0:
                train(run)
                evaluate(run)
        curvature(study.run("digits/cnn/psat/eps0.3/seed0"))
        landscape(study.run("digits/cnn/psat/eps0.3/seed0"))
        log = study.folder / "logs/train/digits/cnn/standard/eps0.3/seed1.log"
        log.parent.mkdir(parents=True)
        with log.open("w") as file, contextlib.redirect_stderr(file):
            assert main(["train", "--study", "tiny.yaml", "--run", "digits/cnn/standard/eps0.3/seed1"]) == 2
        yield study


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, which records its console and every request."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromium-driver, as Debian packages them")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as browser:
        yield browser
