"""Training and evaluation of real, small runs, through the command line."""

import json
import resource
import shutil

import pandas as pd
import pyautoattack
import pytest
import torch
from studies import TINY

from sat_core import data, evaluation, models, training
from sat_core.__main__ import main
from sat_core.attacks import PGD
from sat_core.errors import ConfigError
from sat_core.study import Study
from sat_core.study.settings import Data
from sat_core.runs.data import load

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


def test_a_gpu_is_used_if_wanted_and_one_that_torch_cannot_use_is_told(write_study, tmp_path, monkeypatch):
    without = TINY | {"overrides": [*TINY["overrides"], {"set": {"resources": {"gpus": 0}}}]}
    run, alone = (Study(write_study(study)).run("digits/cnn/psat/eps0.3/seed0") for study in (TINY, without))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(training, "DRIVER", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert training.take_device(run).type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert training.take_device(alone).type == "cpu"
    with pytest.raises(ConfigError, match="cannot use the GPU that this job was given"):
        training.take_device(run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training.take_device(alone).type == "cpu"


@pytest.mark.parametrize("classes", [4, 7])
def test_autoattack_targets_every_class_where_there_are_few(classes):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes)).requires_grad_(False)
    x = torch.rand(30, 1, 8, 8)
    y, broken_by = training.predict(model, x), [""] * 30
    for attack in evaluation.ATTACKS:
        evaluation.attack_block(
            model, x, y, attack, epsilon=0.1, seed=0, classes=classes, broken_by=broken_by, batch_size=len(x)
        )
    margins = (model(x).gather(1, y[:, None]) - model(x)) - 0.1 * (
        model[1].weight[y][:, None] - model[1].weight
    ).abs().sum(dim=2)
    margins.scatter_(1, y[:, None], float("inf"))
    breakable = margins.amin(dim=1) < 0  # of a linear network in the ball, images near 0 or 1 apart
    assert not any(by and not can for by, can in zip(broken_by, breakable.tolist(), strict=True))
    assert 0 < sum(by != "" for by in broken_by) < 30


def test_validation_of_images_that_are_all_misclassified():
    model = models.build("cnn", Data(source="digits", image=(1, 8, 8), classes=10))
    images = data.Images(torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8), torch.zeros(5, dtype=torch.int64))
    images.labels[:] = (training.predict(model, images.batch(slice(None))[0]) + 1) % 10
    assert training.accuracies(model, images, PGD(0.1, 0.02, 2)) == (0, 0)


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
