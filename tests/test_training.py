"""Training and evaluation of real, small runs, through the command line."""

import json
import resource
import shutil

import pandas as pd
import pyautoattack
import pytest
import torch

from sat_core import evaluation, training
from sat_core.__main__ import main
from sat_core.data import load

ADDRESS = "digits/cnn/psat/eps0.3/seed0"


def test_evaluation_agrees_with_autoattack_run_whole(tiny):
    run = tiny.run(ADDRESS)
    training.train(run)
    evaluation.evaluate(run)
    table = pd.read_csv(run.folder / "autoattack.csv", keep_default_na=False)
    summary = json.loads((run.folder / "autoattack.json").read_text())
    (images,) = load(run, "test")
    x, y = images.batch(slice(12))
    model = evaluation.trained_model(run, torch.device("cpu"))[0]
    official = pyautoattack.AutoAttack(model, eps=0.3, norm="Linf", version="standard", seed=0)
    _x_adv, y_adv = official.run_standard_evaluation(x, y, batch_size=512)
    assert (table["broken_by"] == "").tolist() == (y_adv == y).tolist()
    assert table["label"].tolist() == y.tolist()
    assert table["prediction"].tolist() == model(x).argmax(1).tolist()
    assert summary["n"] == 12 and summary["epsilon"] == "0.3"
    assert summary["clean"] == pytest.approx((table["broken_by"] != "clean").mean())
    assert summary["robust"] == pytest.approx((y_adv == y).float().mean().item())
    assert list(summary["after"]) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    record = json.loads((run.folder / "run.json").read_text())
    assert summary["weights"] == record["files"]["model.safetensors"]
    peak_by_now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    assert 150 < record["peak_memory_mb"]["main"] <= peak_by_now  # torch alone takes more than 150 MB


def test_evaluating_an_untrained_run_says_what_to_do(tiny, capsys):
    assert main(["evaluate", "--study", str(tiny.path), "--run", ADDRESS]) == 2
    assert "the run is not trained yet; `train` it first" in capsys.readouterr().err


def test_splits_are_stratified_disjoint_and_fixed(tiny):
    run = tiny.run(ADDRESS)
    train, validation, test = load(run, "train", "validation", "test")
    shutil.rmtree("results")
    (again,) = load(run, "train")
    assert (len(train), len(validation), len(test)) == (1293, 144, 360)
    assert torch.equal(train.pixels, again.pixels)
    assert validation.labels.bincount().max() - validation.labels.bincount().min() <= 1
    keys = [
        {(p.numpy().tobytes(), int(label)) for p, label in zip(s.pixels, s.labels, strict=True)}
        for s in (train, validation, test)
    ]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    x, _ = train.batch(slice(None))
    assert x.dtype == torch.float32 and x.min() == 0 and x.max() == 1


def test_missing_data_without_a_network_is_one_sentence(write_study, capsys, monkeypatch):
    from studies import TINY

    table = TINY["tables"]["digits"] | {"dataset": "mnist"}
    study = {"tables": {"mnist": table}, "overrides": [{"set": {"data": {"root": "nowhere"}}}]}

    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    assert main(["data", "--study", str(write_study(study)), "--dataset", "mnist"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: dataset 'mnist' is not under 'nowhere' and could not be downloaded")


def test_an_unusable_results_folder_is_one_sentence(tiny, capsys):
    (tiny.path.parent / "results").write_text("in the way")
    assert main(["train", "--study", str(tiny.path), "--run", ADDRESS]) == 2
    assert "cannot be used as an output folder" in capsys.readouterr().err
