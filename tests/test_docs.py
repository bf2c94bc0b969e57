"""What the documents show runs as it stands: examples in docstrings, on pages and in the README; the tutorial."""

from __future__ import annotations

import copy
import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from helpers import TINY, run_epoch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import sat_core
from sat_core.runs.check import check
from sat_core.runs.trainer import Trainer
from sat_core.study import Study, defense_names

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/loop.md", "docs/tutorial.md")
MODULES = (
    *("fields", "attacks", "awp", "difficulty", "judge", "sanity", "defenses", "models"),
    *("hessian", "hessian.objective", "hessian.planes", "hessian.traces", "report.comparisons"),
)
RESULTS = {"Perturbation", "Verdict"}
"""What public functions return: their examples show them."""


@pytest.fixture(autouse=True)
def leave_random_numbers_alone():
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    found = doctest.testmod(importlib.import_module(f"sat_core.{name}"))
    assert found.attempted
    assert not found.failed, "what differs is printed above"


@pytest.mark.parametrize("name", sorted(set(sat_core.__all__) - RESULTS))
def test_every_public_name_has_an_example(name):
    found = getattr(sat_core, name)
    assert ">>> " in (found.__doc__ or "") + (getattr(found.__call__, "__doc__", "") or "")


@pytest.mark.parametrize("page", PAGES)
def test_the_python_on_a_page_runs_from_top_to_bottom(page):
    examples = list(Sybil([PythonCodeBlockParser()]).parse(REPOSITORY / page).examples())
    assert examples
    for example in examples:
        example.evaluate()


@pytest.mark.parametrize("page", ["README.md", "docs/studies.md", "config/README.md"])
def test_the_studies_on_a_page_are_valid(page, write_study):
    found = re.findall("```yaml\n(.*?)```", (REPOSITORY / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found
    for text in found:
        study = Study(write_study(text, "example"))
        check(study, study.runs)


def test_the_dataset_that_contributing_shows_serves_every_defense(write_study, tmp_path):
    (found,) = re.findall("```yaml\n(.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/pets.yaml").write_text(found)
    for label in ("cat", "dog", "emu", "fox"):
        for part in ("train", "test"):
            (tmp_path / "data/pets" / part / label).mkdir(parents=True)
    table = {"dataset": "pets", "models": ["preactresnet18"], "defenses": sorted(defense_names())}
    study = Study(write_study({"tables": {"pets": table | {"epsilons": ["8/255"]}}}))
    check(study, study.runs)


def test_every_test_that_a_page_names_exists():
    named = {name for page in REPOSITORY.glob("docs/**/*.md") for name in re.findall(r"`(test_\w+)`", page.read_text())}
    tests = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py"))
    assert named and named <= set(re.findall(r"^def (test_\w+)\(", tests, re.MULTILINE))


def evidence_says(root: Path) -> str:
    """What `refresh.py --check` complains of; "" if the pages are what its csv files give."""
    command = [sys.executable, "docs/evidence/refresh.py", "--check"]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (found.returncode == 0) == (found.stderr == ""), found.stderr
    return found.stderr


def test_the_evidence_says_what_its_numbers_say(tmp_path):
    assert evidence_says(REPOSITORY) == ""
    for part in ("config", "docs/evidence", "docs/pictures.py", "README.md"):
        source, target = REPOSITORY / part, tmp_path / part
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    runs = tmp_path / "docs/evidence/demo-evidence/digits-runs.csv"
    frame = pd.read_csv(runs, dtype={"epsilon": str})
    frame.assign(robust=frame["robust"] + 1).to_csv(runs, index=False)
    assert "README.md is not what the csv files give" in evidence_says(tmp_path)
    frame.assign(settings=["other", *frame["settings"][1:]]).to_csv(runs, index=False)
    assert "digits: " in evidence_says(tmp_path) and "of other settings than" in evidence_says(tmp_path)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == sat_core.__version__


def test_the_defense_with_a_state_that_contributing_shows_trains(write_study, tmp_path):
    page = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall("```python\n(.*?)```", page, re.DOTALL) if "Remembering" in block)
    imports = """
import torch
from torch import Tensor
from sat_core.attacks import Perturbation, cross_entropy
from sat_core.defenses import Batch, Defense
from sat_core.fields import Number
"""
    (tmp_path / "remembering.py").write_text(imports + code, encoding="utf-8")
    study = copy.deepcopy(TINY) | {"plugins": ["remembering.py"]}
    study["tables"]["digits"]["defenses"] = ["psat", "remembering"]
    study = Study(write_study(study))
    check(study, study.runs)
    trainer = Trainer(study.run("digits/cnn/remembering/eps0.3/seed0"), torch.device("cpu"))
    run_epoch(trainer)
    assert all(len(of_one.unique()) > 1 for of_one in trainer.defense_state["delta"])


def test_the_tutorial_leads_to_a_table(tmp_path):
    """Its files as they are printed, in a copy of the package; the study with fewer images and steps."""
    page = (REPOSITORY / "docs/tutorial.md").read_text(encoding="utf-8")
    code = re.findall("```python\n(.*?)```", page, re.DOTALL)[0]
    study = yaml.safe_load(re.findall("```yaml\n(.*?)```", page, re.DOTALL)[0])
    runs = re.findall(r"^    (digits/\S+)$", page, re.MULTILINE)
    for part in ("sat_core", "config"):
        shutil.copytree(REPOSITORY / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/margin.py").write_text(code, encoding="utf-8")
    short = {"data": {"train_images": 400}, "attack": {"steps": 1}, "evaluation": {"images": 12}}
    for name, options in (("margin", {}), ("typo", {"temprature": 2})):
        extra = [{"set": short}, {"where": {"defense": "margin"}, "set": {"options": options}}]
        content = study | {"overrides": study["overrides"] + extra}
        (tmp_path / f"config/{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    script = f"""
from sat_core.__main__ import main
assert main(["check", "--study", "config/typo.yaml"]) == 2
for verb in ("check", "train --run {runs[-1]}", "evaluate --run {runs[-1]}", "table"):
    assert main([*verb.split(), "--study", "config/margin.yaml"]) == 0, verb
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "unknown key 'temprature'; did you mean 'temperature'?" in ran.stderr
    assert ran.stdout.split()[: len(runs)] == runs
    (row,) = re.findall(r"\| margin .*", (tmp_path / "results/margin/tables/digits.md").read_text(encoding="utf-8"))
    assert re.search(r"\d\d\.\d\d", row)
