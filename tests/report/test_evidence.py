"""The csv files of docs/evidence: finished runs are added, others keep their rows as long as their settings stand."""

import copy
import shutil
import sys

import pandas as pd
import pytest
from helpers import REPOSITORY, TINY, script, write_run

from sat_core.runs.files import read_json, write_json
from sat_core.study import Study

LABELS = list(range(10))
BROKEN = ["clean", "square", "apgd-ce", "fab-t", "apgd-t", *[""] * 5]


@pytest.fixture
def refresh(monkeypatch, tmp_path):
    """The script, writing into a folder of its own."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(REPOSITORY / "docs/evidence")])
    module = script("docs/evidence/refresh.py")
    monkeypatch.setattr(module, "HERE", tmp_path / "evidence")
    module.HERE.mkdir()
    return module


def finish(study: Study, *defenses: str) -> None:
    """Result files of these defenses, with all that a training writes down."""
    for defense in defenses:
        run = study.run(f"digits/cnn/{defense}/eps0.3/seed0")
        write_run(run, LABELS, BROKEN)
        environment = {"git_commit": "c", "packages": {"torch": "2"}, "platform": "p"}
        said = {"seconds": 8, "best_epoch": 1, "precision": "float32", "environment": environment}
        record = read_json(run.folder / "run.json") | said
        record["config"]["training"] = {"epochs": 2}
        write_json(run.folder / "run.json", record)


def rows(refresh, kind: str) -> pd.DataFrame:
    (path,) = refresh.HERE.glob(f"*/digits-{kind}.csv")
    return pd.read_csv(path, dtype={"epsilon": str})


def test_finished_runs_are_added_and_those_of_other_settings_go(refresh, write_study):
    study = Study(write_study())
    with pytest.raises(SystemExit, match=r"nothing of .* is finished"):
        refresh.collect(study, "digits")
    finish(study, "psat")
    refresh.collect(study, "digits")
    assert rows(refresh, "verdicts")["letters"].tolist() == ["wscft....."]
    assert rows(refresh, "runs")["robust"].tolist() == [50]
    shutil.rmtree(study.folder)
    finish(study, "madry")
    refresh.collect(study, "digits")
    assert rows(refresh, "runs")["defense"].tolist() == ["madry", "psat"]  # in the order of the table
    assert rows(refresh, "history").groupby("defense").size().to_dict() == {"madry": 2, "psat": 2}
    files = {path: path.read_bytes() for path in refresh.HERE.rglob("*.csv")}
    refresh.collect(study, "digits")
    assert files == {path: path.read_bytes() for path in refresh.HERE.rglob("*.csv")}
    shutil.rmtree(study.folder)
    changed = copy.deepcopy(TINY)
    changed["overrides"].append({"where": {"defense": "psat"}, "set": {"training": {"epochs": 3}}})
    refresh.collect(Study(write_study(changed)), "digits")
    assert rows(refresh, "runs")["defense"].tolist() == ["madry"] == rows(refresh, "verdicts")["defense"].tolist()


def test_a_page_with_fewer_runs_has_no_gaps(refresh, monkeypatch):
    monkeypatch.setattr(refresh, "HERE", REPOSITORY / "docs/evidence")
    tables = {}
    for title, (study, table, paper) in refresh.TABLES.items():
        evidence = refresh.Evidence(Study(REPOSITORY / f"config/{study}.yaml"), table, paper)
        if title == "smallcnn":  # H-SAT shares no seed with P-SAT, and TRADES is not there
            for kind in refresh.FILES:
                rows = getattr(evidence, kind)
                kept = {"psat": [0], "hsat": [1], "madry": [0, 1]}
                setattr(evidence, kind, rows[[row.seed in kept.get(row.defense, []) for row in rows.itertuples()]])
        tables[title] = evidence
    for template in refresh.PAGES:
        said = refresh.rendered(template, tables)
        assert "nan" not in said
        assert "psat – hsat" not in said.split("MNIST, TRADES' network.**")[-1].split("**MNIST, `convsmall`.**")[0]


def test_what_an_interval_says_in_words(refresh):
    ends = [(0.1, 9), (-9, -0.1), (-9, 0.1), (-2, 2.5)]
    said = [refresh.stands({"low": low, "high": high}) for low, high in ends]
    assert said == ["ahead", "behind", "undecided", "level (within 3 points)"]
