"""What an edit makes Snakemake do again: what depends on it, and nothing else; copying and touching are no edits."""

import contextlib
import itertools
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers import MADRY, PSAT, TINY, Project, jobs

from sat_core.__main__ import main

STALE = """
import json
from sat_core.study import Study
from sat_core.workflow import stale

print(json.dumps(stale(Study("config/tiny.yaml"))))
"""
NOTHING: set[str] = set()
TRAIN, EVALUATE = ({f"{stage} {run}" for run in (MADRY, PSAT)} for stage in ("train", "evaluate"))
TRAINER, TRAINING = "sat_core/runs/trainer.py", "sat_core/study/settings/training.py"
EDITS = {
    "a log line": (TRAINER, '"epoch %d/%d: loss', '"after epoch %d/%d: loss', NOTHING),
    "a docstring": (TRAINER, '"""The state of one training, from', '"""All that a training is, from', NOTHING),
    "a comment": (TRAINER, "    loss.backward()\n", "    loss.backward()  # a comment\n", NOTHING),
    "an error of the training": (TRAINER, "training diverged: ", "the training has diverged: ", NOTHING),
    "an error of a study": ("sat_core/study/address.py", "is not of the form", "lacks the form", NOTHING),
    "a new network": ("sat_core/models/tiny.py", None, "def tiny(image, classes):\n    return None\n", NOTHING),
    "a new setting": (TRAINING, "    epochs: Count\n", "    epochs: Count\n    new: int = 0\n", NOTHING),
    "a default that is not in use": (TRAINING, " = 5e-4\n", " = 1e-3\n", NOTHING),
    "a default that is in use": (TRAINING, "= Field(0.9, ", "= Field(0.8, ", TRAIN),
    "a defense": ("sat_core/defenses/psat.py", "class PSAT", "EXTRA = 1\n\n\nclass PSAT", {f"train {PSAT}"}),
    "the attack": ("sat_core/attacks.py", "class Iterate", "EXTRA = 1\n\n\nclass Iterate", TRAIN),
    "the judge": ("sat_core/judge.py", "def autoattack", "EXTRA = 1\n\n\ndef autoattack", EVALUATE),
}  # fmt: skip
"""What -> file, text, the text in its place, and what has to be done again."""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A copy of the project with a tiny study that is finished: as `snakemake` leaves it, but in one process."""
    made = Project(tmp_path_factory.mktemp("project") / "here", TINY, "tiny")
    digits = made.folder / "config/datasets/digits.yaml"
    digits.write_text(digits.read_text().replace("momentum: 0.9, ", ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.folder)
        for verb in ("train", "evaluate"):
            for run in (MADRY, PSAT):
                assert main([verb, "--study", "config/tiny.yaml", "--run", run]) == 0
        assert main(["report", "--study", "config/tiny.yaml"]) == 0
    return made


SECONDS = itertools.count(1)


@contextlib.contextmanager
def edited(path: Path, old: str | None, new: str) -> Iterator[None]:
    """The file with ``new`` in the place of ``old``, or made of ``new`` alone; then as it was, its time included."""
    if old is not None:
        text, times = path.read_text(), path.stat()
        assert text.count(old) == 1, f"{old!r} is not once in {path}"
        new = text.replace(old, new)
    path.write_text(new)
    moment = path.stat().st_mtime + next(SECONDS)  # compiled files are told apart by size and whole seconds alone
    os.utime(path, (moment, moment))
    try:
        yield
    finally:
        path.unlink()
        if old is not None:
            path.write_text(text)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def stale(project: Project) -> dict[str, str]:
    """File -> why it is made again, as Snakemake is told."""
    return json.loads(project.python("-c", STALE))


def lr_of_psat(project: Project, lr: float) -> contextlib.AbstractContextManager:
    """P-SAT's learning rate changed in the study."""
    path = project.study("tiny")
    study = yaml.safe_load(path.read_text())
    study["overrides"].append({"where": {"defense": "psat"}, "set": {"training": {"lr": lr}}})
    return edited(path, path.read_text(), yaml.safe_dump(study))


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_makes_again_what_depends_on_it_and_nothing_else(project, name):
    file, old, new, expected = EDITS[name]
    with edited(project.folder / file, old, new):
        found = stale(project)
    assert {why.partition(" again: ")[0] for path, why in found.items() if "/runs/" in path} == expected
    if not expected:
        assert not found  # no table, no figure, no report either
    elif file != TRAINING:
        assert all(why.endswith(f" again: {file} changed") for path, why in found.items() if "/runs/" in path)


def test_a_default_that_changed_is_told_by_its_name_and_values(project):
    file, old, new, _ = EDITS["a default that is in use"]
    with edited(project.folder / file, old, new):
        found = stale(project)
    whys = [why for path, why in found.items() if "/runs/" in path]
    assert whys == [f"train {run} again: training.momentum 0.9 -> 0.8" for run in (MADRY, PSAT)]


def test_snakemake_plans_as_many_jobs_as_are_out_of_date(project):
    assert not stale(project)
    with lr_of_psat(project, 0.1):
        found, said = stale(project), project.snakemake("-n")
    assert f"train {PSAT} again: training.lr 0.05 -> 0.1" in said
    assert [why for path, why in found.items() if "/runs/" in path] == [f"train {PSAT} again: training.lr 0.05 -> 0.1"]
    assert jobs(said) == {"train": 1, "evaluate": 1, "table": 1, "compare": 1, "figure": 3, "report": 1}


def test_a_copy_whose_files_are_of_another_time_has_nothing_to_do_and_an_edit_in_it_is_marked(project, tmp_path):
    copy, dates = Project.__new__(Project), random.Random(0)
    shutil.copytree(project.folder, tmp_path / "copy")
    copy.folder, copy.name, copy.results = tmp_path / "copy", project.name, tmp_path / "copy/results/tiny"
    for path in copy.folder.rglob("*"):
        os.utime(path, (future := time.time() + dates.randrange(10**6), future))
    assert "Nothing to be done" in copy.snakemake("-n")
    copy.python("-m", "sat_core", "table", "--study", "config/tiny.yaml")
    tables = {path.name: path.read_bytes() for path in (project.results / "tables").glob("digits*")}
    assert len(tables) == 16
    assert {path.name: path.read_bytes() for path in (copy.results / "tables").glob("digits*")} == tables
    with lr_of_psat(copy, 0.1):
        said = copy.python("-m", "sat_core", "table", "--study", "config/tiny.yaml")
        plan = copy.snakemake("-n")
    rows = [line for line in said.splitlines() if line.startswith("| P-SAT ")]
    others = [line for line in said.splitlines() if line.startswith("| Madry ")]
    assert rows and others
    assert all(cell.strip(" *").endswith("‡") for cell in rows[0].strip("|").split("|")[1:])
    assert not any("‡" in line for line in others)
    assert "‡ of other settings or code than the present: psat, ε = 0.3, seed 0 (training.lr 0.05 -> 0.1)." in said
    assert f"train {PSAT} again: training.lr 0.05 -> 0.1" in plan
