"""Checkpoints that may not be used: of another configuration, of a stranger, damaged."""

import copy
import hashlib
import io
import pickle
import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from helpers import PSAT, forget, results, run_epoch

from sat_core.runs import checkpoint, folder
from sat_core.runs.train import train
from sat_core.runs.trainer import Trainer, seed_everything


def test_a_checkpoint_of_another_configuration_is_refused_by_name(judged, caplog):
    run = judged.run(PSAT)
    expected = results(run)
    trainer = Trainer(run, torch.device("cpu"))
    trainer.epoch = 2
    forget(run, "train")
    other = copy.deepcopy(folder.present(run, "train"))
    other["settings"]["training.lr"] = 0.1
    other["code"]["attacks"] = "another"
    for _ in range(2):
        checkpoint.save_checkpoint(run.folder / "checkpoint.pt", other, trainer.state_dict())
    with caplog.at_level("INFO"):
        train(run)
    assert "checkpoint.pt is not used, it belongs to another configuration or code" in caplog.text
    assert "training.lr 0.1 -> 0.05; sat_core/attacks.py changed" in caplog.text
    assert "starting from the beginning" in caplog.text
    assert results(run) == expected


def test_a_hostile_pickle_is_refused_and_not_executed(tiny, tmp_path, caplog):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    run = tiny.run(PSAT)
    run.folder.mkdir(parents=True)
    path, buffer = run.folder / "checkpoint.pt", io.BytesIO()
    torch.save({"made_of": {}, "state": Hostile()}, buffer)
    for content, sentence in (
        (buffer.getvalue(), "it holds something other than tensors and plain values"),
        (pickle.dumps(Hostile()), "it is not a checkpoint of ours"),
        (b"", "it is not a checkpoint of ours"),
    ):
        path.write_bytes(content + hashlib.sha256(content).digest())
        assert checkpoint.load_checkpoint(path, lambda made_of: []) is None
        assert sentence in caplog.text
        caplog.clear()
    assert not (tmp_path / "owned").exists()


def test_every_generator_goes_on_where_it_was(tmp_path):
    def draws():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(3)
    checkpoint.save_checkpoint(tmp_path / "checkpoint.pt", {}, {})
    expected, _ = draws(), draws()
    checkpoint.load_checkpoint(tmp_path / "checkpoint.pt", lambda _: [])
    assert draws() == expected


def test_a_truncated_checkpoint_falls_back_to_the_one_before(judged, caplog):
    run = judged.run(PSAT)
    forget(run, "evaluate")
    whole = results(run)
    shutil.rmtree(run.folder)
    made_of, trainer = folder.present(run, "train"), Trainer(run, torch.device("cpu"))
    path = run.folder / "checkpoint.pt"
    checkpoint.save_checkpoint(path, made_of, trainer.state_dict())
    run_epoch(trainer)
    checkpoint.save_checkpoint(path, made_of, trainer.state_dict())
    content = path.read_bytes()
    for offset in random.Random(1).sample(range(len(content)), 20):
        path.write_bytes(content[:offset])
        caplog.clear()
        with caplog.at_level("INFO"):
            state = checkpoint.load_checkpoint(path, partial(folder.differences, run, "train"))
        assert state["epoch"] == 0
        assert "checkpoint.pt is not used: it is damaged" in caplog.text
        assert "resuming from" in caplog.text and "checkpoint.previous.pt" in caplog.text
    train(run)
    assert results(run) == whole
