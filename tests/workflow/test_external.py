"""A network from elsewhere as a row of a study, beside rows that are trained."""

import copy
import shutil
from pathlib import Path

import torch
from helpers import TINY, Project, jobs

from sat_core import plugins
from sat_core.defenses import fat
from sat_core.study import Study

NETWORK = """
from torch import nn


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
STRANGER = "digits/linear/stranger/eps0.3/seed0"


def test_snakemake_judges_an_external_beside_trained_rows_and_again_only_when_its_weights_change(tmp_path):
    study = copy.deepcopy(TINY)
    study["tables"]["digits"]["defenses"] = ["psat", "stranger"]
    study["overrides"].append({"set": {"evaluation": {"images": 3}}})
    study["external"] = {"stranger": {"model": "../lab/net.py:linear", "weights": "../lab/w.pt"}}
    lab = tmp_path / "here/lab"
    lab.mkdir(parents=True)
    (lab / "net.py").write_text(NETWORK)
    network = plugins.load(str(lab / "net.py")).linear()
    torch.save(network.state_dict(), lab / "w.pt")
    project = Project(tmp_path / "here", study, "tiny")
    project.snakemake()
    assert "stranger (external)" in (project.results / "tables/digits.md").read_text()
    page = (project.results / "report.html").read_text()
    assert "stranger (external)" in page and "† trivial, external" in page
    assert (project.results / "runs" / STRANGER / "README.md").exists()
    assert jobs(project.snakemake("-n")) == {}

    torch.save({key: tensor + 1 for key, tensor in network.state_dict().items()}, lab / "w.pt")
    said = project.snakemake("-n", "--until", "evaluate")
    assert jobs(said) == {"train": 1, "evaluate": 1}
    assert f"train {STRANGER} again: external.weights " in said
    (lab / "w.pt").unlink()
    assert "external.stranger: weights lab/w.pt: there is no such file" in project.snakemake("-n", status=1)


def test_an_external_of_a_study_that_is_extended_is_seen_from_there(write_study, tmp_path):
    lab = tmp_path / "lab/deep"
    lab.mkdir(parents=True)
    (lab / "net.py").write_text(NETWORK)
    (lab / "w.pt").touch()
    table = "tables: {digits: {dataset: digits, defenses: [stranger], epsilons: [0.3]}}\n"
    (tmp_path / "lab/base.yaml").write_text(
        f"{table}external: {{stranger: {{model: 'deep/net.py:linear', weights: deep/w.pt}}}}\n"
    )
    (run,) = Study(write_study("extends: lab/base.yaml\n", "more")).runs
    assert (run.external.weights, run.model_file) == ("lab/deep/w.pt", "lab/deep/net.py")


def test_fat_as_a_plugin_trains_to_the_same_weights_in_every_byte(tmp_path):
    study = copy.deepcopy(TINY) | {"plugins": ["../lab/mine.py"]}
    study["tables"]["digits"]["defenses"] = ["fat", "friendly"]
    study["overrides"] = study["overrides"][:1]
    (tmp_path / "here/lab").mkdir(parents=True)
    source = Path(fat.__file__).read_text()
    (tmp_path / "here/lab/mine.py").write_text(source.replace("class FAT(", "class Friendly("))
    project = Project(tmp_path / "here", study, "tiny")
    project.snakemake("--until", "train")
    own, mine = (project.results / f"runs/digits/cnn/{name}/eps0.3/seed0" for name in ("fat", "friendly"))
    assert (own / "model.safetensors").read_bytes() == (mine / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "here/lab")
    assert "lab/mine.py: cannot be read" in project.snakemake("-n", status=1)
