"""AutoAttack on real, small runs: what it says does not depend on how it was interrupted or shared out."""

import copy
import json
import resource
from pathlib import Path

import pandas as pd
import pyautoattack
import pytest
import torch
import yaml
from helpers import TINY, edited, forget, results

from sat_core.__main__ import main
from sat_core.judge import ATTACKS, LENGTHS, attack_standing
from sat_core.runs.checkpoint import save_weights
from sat_core.runs.data import load
from sat_core.runs.evaluate import PARTS, evaluate, precision_on
from sat_core.runs.files import checksum, read_json, write_json
from sat_core.runs.network import fresh_model, trained_model
from sat_core.runs.train import train
from sat_core.study import Study

PSAT = "digits/cnn/psat/eps0.1/seed0"
ITERATIONS = 5


@pytest.fixture(scope="module")
def judged_once(tmp_path_factory):
    """In place of the one that all tests share, a run of which some images stand: AutoAttack is cut short for them."""
    study = copy.deepcopy(TINY) | {"rehearses": "tiny.yaml"}
    study["tables"]["digits"] |= {"defenses": ["psat"], "epsilons": [0.1]}
    study["overrides"].append({"set": {"evaluation": {"images": 6, "batch_size": 2, "iterations": ITERATIONS}}})
    folder = tmp_path_factory.mktemp("judged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("tiny.yaml").write_text(yaml.safe_dump(study))
        run = Study("tiny.yaml").run(PSAT)
        train(run)
        evaluate(run)
        broken_by = pd.read_csv(run.folder / "autoattack.csv", keep_default_na=False)["broken_by"]
        assert 0 < (broken_by == "").sum() < 6 and {"apgd-ce", "apgd-t"} <= set(broken_by)
    return folder


@pytest.fixture
def trained(judged):
    """The run, trained, and to be judged in one block."""
    run = edited(judged, evaluation={"images": 12, "batch_size": 512}).run(PSAT)
    forget(run, "evaluate")
    return run


def test_evaluation_agrees_with_autoattack_run_whole(trained):
    run = trained
    evaluate(run)
    table = pd.read_csv(run.folder / "autoattack.csv", keep_default_na=False)
    summary = json.loads((run.folder / "autoattack.json").read_text())
    (images,) = load(run, "test")
    x, y = images.batch(slice(12))
    model = trained_model(run, torch.device("cpu"))[0]
    official = pyautoattack.AutoAttack(model, eps=0.1, norm="Linf", version="standard", seed=0)
    for part, length in LENGTHS.values():
        setattr(getattr(official, part), length, ITERATIONS)
    _x_adv, y_adv = official.run_standard_evaluation(x, y, batch_size=512)
    assert (table["broken_by"] == "").tolist() == (y_adv == y).tolist()
    assert 0 < (y_adv == y).sum() < (table["broken_by"] != "clean").sum()
    assert table["label"].tolist() == y.tolist()
    assert table["prediction"].tolist() == model(x).argmax(1).tolist()
    assert summary["n"] == 12 and summary["epsilon"] == "0.1" and summary["precision"] == "float32"
    assert summary["clean"] == pytest.approx((table["broken_by"] != "clean").mean())
    assert summary["robust"] == pytest.approx((y_adv == y).float().mean().item())
    assert list(summary["after"]) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    record = json.loads((run.folder / "run.json").read_text())
    assert summary["weights"] == record["files"]["model.safetensors"]
    peak_by_now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    assert 150 < record["peak_memory_mb"]["main"] <= peak_by_now  # torch alone takes more than 150 MB


def test_tf32_on_a_processor_is_float32_and_said_to_be(caplog):
    assert precision_on(torch.device("cpu"), "tf32") == "float32"
    assert "tf32 is not to be had on CPU" in caplog.text
    assert precision_on(torch.device("cpu"), "float32") == "float32" and len(caplog.records) == 1


def test_evaluating_an_untrained_run_says_what_to_do(tiny, capsys):
    assert main(["evaluate", "--study", str(tiny.path), "--run", tiny.runs[0].id.path]) == 2
    assert "the run is not trained yet; `train` it first" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError(), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")],
)
def test_out_of_memory_in_evaluation_halves_the_batch(trained, monkeypatch, caplog, error):
    run = trained
    model = trained_model(run, torch.device("cpu"))[0]
    x, y = load(run, "test")[0].batch(slice(12))
    sizes, original = [], pyautoattack.AutoAttack.run_standard_evaluation

    def limited(self, x, y, batch_size):
        sizes.append(batch_size)
        if batch_size > 4:
            raise error
        return original(self, x, y, batch_size=batch_size)

    monkeypatch.setattr(pyautoattack.AutoAttack, "run_standard_evaluation", limited)
    broken_by = [""] * 12
    settings = {"epsilon": 0.1, "seed": 0, "classes": 10, "broken_by": broken_by}
    assert attack_standing(model, x, y, "apgd-ce", batch_size=500, **settings) == 3
    assert sizes == [500, 6, 3] and "going on with 3 images" in caplog.text
    assert "apgd-ce" in broken_by
    sizes.clear()
    original = lambda self, x, y, batch_size: (x, y)  # noqa: E731  (an attack that fails, so that each has its turn)
    evaluate(run)
    assert len(set(sizes)) > 1 and len(set(sizes[-4:])) == 1  # what fits is not found out anew by each attack
    assert read_json(run.folder / "autoattack.json")["batch_size"] == sizes[-1] <= 4


def test_shards_and_interruptions_do_not_change_the_verdict(judged, monkeypatch):
    run = judged.run(PSAT)
    expected = results(run)
    forget(run, "evaluate")
    original, calls = attack_standing, []

    def dying(*arguments, **options):
        calls.append(arguments[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr("sat_core.runs.evaluate.attack_standing", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, (1, 2))
    evaluate(run, (1, 2))  # block 0, of which images stand, goes on with its third attack
    assert calls == ["apgd-ce", "apgd-t", "fab-t", "fab-t", "square", *ATTACKS]
    evaluate(run, (2, 2))
    assert len(calls) == 13
    evaluate(run)
    assert len(calls) == 13  # all that was left was to merge
    assert results(run) == expected
    assert not (run.folder / PARTS).exists()
    words = ["--study", str(judged.path), "--run", PSAT]
    assert main(["evaluate", *words, "--shard", "1-of-2"]) == 0  # it may come after `train --whole`
    assert len(calls) == 13 and not (run.folder / PARTS).exists()


def test_a_block_of_other_weights_is_judged_again(judged):
    run = judged.run(PSAT)
    expected = results(run)
    forget(run, "evaluate")
    evaluate(run, (1, 3))
    block = run.folder / PARTS / "best0000.json"
    write_json(block, read_json(block) | {"weights": "others", "broken_by": ["square"] * 2})
    evaluate(run)
    assert results(run) == expected


def test_a_damaged_block_is_judged_again(judged, caplog):
    run = judged.run(PSAT)
    expected = results(run)
    forget(run, "evaluate")
    evaluate(run, (1, 3))
    block = run.folder / PARTS / "best0000.json"
    block.write_text(block.read_text().replace("apgd-ce", "apgd-xx"))
    evaluate(run)
    assert "the block is judged again" in caplog.text
    assert results(run) == expected


def test_each_block_has_the_seed_of_the_study_plus_its_number(judged, monkeypatch):
    run, seeds = edited(judged, evaluation={"seed": 5}).run(PSAT), []
    forget(run, "evaluate")

    def watched(*arguments, **options):
        seeds.append(options["seed"])
        return attack_standing(*arguments, **options)

    monkeypatch.setattr("sat_core.runs.evaluate.attack_standing", watched)
    evaluate(run)
    assert seeds == [5] * 4 + [6] * 4 + [7] * 4


def test_the_last_epoch_is_judged_beside_the_selected_one(judged):
    run = edited(judged, evaluation={"weights": ["best", "last"]}).run(PSAT)
    forget(run, "evaluate")
    constant, path = fresh_model(run), run.folder / "last.safetensors"
    for parameter in constant.parameters():
        parameter.data.zero_()
    path.unlink()
    save_weights(path, constant.state_dict())
    record = read_json(run.folder / "run.json")
    record["files"][path.name] = checksum(path)
    write_json(run.folder / "run.json", record)
    evaluate(run)
    summary = read_json(run.folder / "autoattack.json")
    best, last = (pd.read_csv(run.folder / name) for name in ("autoattack.csv", "autoattack-last.csv"))
    assert set(last["prediction"]) == {0} != set(best["prediction"])
    assert summary["last"]["weights"] == record["files"][path.name] != summary["weights"]
    assert summary["last"]["clean"] == (last["label"] == 0).mean() != summary["clean"]


def test_that_square_lowered_the_accuracy_is_in_the_verdict(judged):
    run = judged.run(PSAT)
    assert "square" not in read_json(run.folder / "autoattack.json")["flags"]
    forget(run, "evaluate")
    evaluate(run, (1, 3))
    block = run.folder / PARTS / "best0000.json"
    write_json(block, read_json(block) | {"broken_by": ["square", ""]})
    evaluate(run)
    assert "square" in read_json(run.folder / "autoattack.json")["flags"]
