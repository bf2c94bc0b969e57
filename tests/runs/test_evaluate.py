"""AutoAttack on real, small runs: what it says does not depend on how it was interrupted or shared out."""

import json
import resource
import shutil
from pathlib import Path

import pandas as pd
import pyautoattack
import pytest
import torch
from helpers import PSAT, forget, results

from sat_core.__main__ import main
from sat_core.judge import attack_standing
from sat_core.runs.data import load
from sat_core.runs.evaluate import PARTS, evaluate, precision_on
from sat_core.runs.files import read_json, write_json
from sat_core.runs.network import trained_model
from sat_core.study import Study


@pytest.fixture
def trained(judged, write_study):
    """P-SAT's run, trained, and to be judged in one block."""
    run = Study(write_study()).run(PSAT)
    shutil.copytree(Path("judged", judged.folder), judged.folder)
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
    official = pyautoattack.AutoAttack(model, eps=0.3, norm="Linf", version="standard", seed=0)
    _x_adv, y_adv = official.run_standard_evaluation(x, y, batch_size=512)
    assert (table["broken_by"] == "").tolist() == (y_adv == y).tolist()
    assert table["label"].tolist() == y.tolist()
    assert table["prediction"].tolist() == model(x).argmax(1).tolist()
    assert summary["n"] == 12 and summary["epsilon"] == "0.3" and summary["precision"] == "float32"
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
    assert main(["evaluate", "--study", str(tiny.path), "--run", PSAT]) == 2
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
    settings = {"epsilon": 0.3, "seed": 0, "classes": 10, "broken_by": broken_by}
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
        evaluate(run, (2, 2))
    evaluate(run, (2, 2))  # block 1 goes on with its third attack
    assert calls == ["apgd-ce", "apgd-t", "fab-t", "fab-t", "square"]
    evaluate(run, (1, 2))
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
    write_json(block, read_json(block) | {"weights": "others", "broken_by": [""] * 2})
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
