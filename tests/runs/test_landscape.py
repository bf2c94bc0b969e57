"""Landscapes of a real run: the centre is the run."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import MADRY

from sat_core.runs.files import read_json
from sat_core.runs.network import trained_model
from sat_core.runs.sample import sample


def test_the_centre_is_the_runs_own_loss(measured):
    run = measured.run(MADRY)
    selected = read_json(run.folder / "curvature.json")["selected"]
    with np.load(run.folder / "landscape.npz") as file:
        content = dict(file)
    assert content["lambda_max"] == pytest.approx(selected["lambda_max"], rel=1e-3)
    for plane, points in (("random", 5), ("hessian", 5), ("reattacked", 3)):
        loss, accuracy = content[f"{plane}_loss"], content[f"{plane}_accuracy"]
        assert loss.shape == (points, points)
        assert loss[points // 2, points // 2] == pytest.approx(selected["loss"], rel=1e-6)
        assert accuracy[points // 2, points // 2] == selected["adversarial"]
    device = torch.device("cpu")
    x, y = sample(run, device)
    logits = trained_model(run, device)[0](x)
    assert content["input_loss"][2, 2] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)
    assert content["input_accuracy"][2, 2] == selected["clean"]
    corner, attacked = content["random_loss"][0, 0], content["reattacked_loss"][0, 0]
    assert attacked > corner  # images made for those weights do more harm than the centre's


def test_its_record_says_the_same_and_names_the_weights(measured):
    run = measured.run(MADRY)
    record = read_json(run.folder / "landscape.json")
    with np.load(run.folder / "landscape.npz") as file:
        assert all(record[name] == file[name] for name in ("lambda_max", "loss", "clean", "adversarial", "weights"))
    assert record["weights"] == read_json(run.folder / "run.json")["files"]["model.safetensors"]
