"""What curvature.json says of a network, against its parts."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers import PSAT, forget, tiny_with

from sat_core.__main__ import main
from sat_core.runs import audit, checkpoint
from sat_core.runs.files import checksum, read_json, write_json
from sat_core.runs.network import fresh_model
from sat_core.runs.train import train
from sat_core.study import Study


@pytest.fixture
def trained(write_study):
    """A trained run with two snapshots: of the selected weights, and of a network that says nothing."""
    small = {"images": 50, "batch_size": 32, "steps": 10}
    study = Study(write_study(tiny_with(training={"snapshots": 1}, curvature=small)))
    run = study.run(PSAT)
    train(run)
    selected, constant = fresh_model(run), fresh_model(run)
    checkpoint.load_weights(run.folder / "model.safetensors", selected)
    for parameter in constant.parameters():
        parameter.data.zero_()
    record = read_json(run.folder / "run.json")
    for epoch, model in ((1, selected), (2, constant)):
        name = run.training.snapshot(epoch)
        checkpoint.save_weights(run.folder / name, model.state_dict())
        record["files"][name] = checksum(run.folder / name)
    write_json(run.folder / "run.json", record)
    return study, run


def test_curvature_json_says_what_the_network_is_worth(trained, capsys):
    study, run = trained
    command = ["curvature", "--study", str(study.path), "--run", PSAT]
    assert main(command) == 0
    content = json.loads((run.folder / "curvature.json").read_text())
    selected, (first, second) = content["selected"], content["epochs"]
    assert selected["n"] == 50 and 0 <= selected["adversarial"] <= selected["clean"] <= 1
    assert selected["residual"] < 0.05 * selected["lambda_max"]
    assert (first["epoch"], second["epoch"]) == (1, 2)
    assert selected["epoch"] == read_json(run.folder / "run.json")["best_epoch"] + 1
    assert first | {"epoch": selected["epoch"]} == selected  # the same weights: the same numbers, to the last bit
    assert second["trivial"] and second["loss"] == pytest.approx(np.log(10), rel=1e-6)
    assert sum(content["spectrum"]["weights"]) == pytest.approx(1)
    forget(run, "curvature")
    (run.folder / run.training.snapshot(2)).unlink()
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "epoch0002.safetensors is missing; delete" in error


def test_an_audit_says_how_each_difficulty_orders_the_samples_beside_the_exact_value():
    columns = {"exact": [1, 2, 3, 4], "classifier": [1, 2, 4, 3]}
    table = pd.DataFrame(columns | {"gauss_newton": [4, 3, 2, 1], "probability_gap": [1, 2, 3, 4]})
    said = audit.summarise(table)
    assert said["spearman"] == pytest.approx({"classifier": 0.8, "gauss_newton": -1, "probability_gap": 1})
    assert said["exact_over_classifier"]["50%"] == 1


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_an_audit_of_a_network_that_says_the_same_of_all_is_written_all_the_same(trained):
    study, run = trained
    shutil.copy(run.folder / run.training.snapshot(2), run.folder / "model.safetensors")
    record = read_json(run.folder / "run.json")
    record["files"]["model.safetensors"] = record["files"][run.training.snapshot(2)]
    write_json(run.folder / "run.json", record)
    assert main(["audit", "--study", str(study.path), "--run", PSAT, "--samples", "4"]) == 0
    assert read_json(run.folder / "audit.json")["spearman"]["probability_gap"] is None
