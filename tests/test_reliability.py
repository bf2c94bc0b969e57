"""Nothing is ever lost: resuming, signals, damage, full disks, two processes, divergence."""

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from studies import REPOSITORY, TINY, run_epoch

from sat_core import checkpoint, evaluation, training
from sat_core.__main__ import main
from sat_core.errors import ConfigError, Interrupted
from sat_core.study import Study
from sat_core.runs.files import atomic, read_json, sole_writer, write_json
from sat_core.report.tables import write_table

ADDRESS = "digits/cnn/psat/eps0.3/seed0"


def results(run) -> tuple:
    """Everything a finished run says, less the times."""
    verdict = run.folder / "autoattack.csv"
    return (
        (run.folder / "model.safetensors").read_bytes(),
        pd.read_csv(run.folder / "history.csv").drop(columns="seconds").to_csv(),
        verdict.read_bytes() if verdict.exists() else None,
    )


def stop_after(monkeypatch, steps: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Send this process a signal in the middle of the given optimiser step, once."""
    original, count = training.Trainer.step, iter(range(1, 10**9))

    def step(self, *batch):
        if next(count) == steps:
            os.kill(os.getpid(), number)
        return original(self, *batch)

    monkeypatch.setattr(training.Trainer, "step", step)


@pytest.mark.parametrize("steps", [1, 9, 20, 21, 22, 41])
def test_a_signal_at_any_step_costs_nothing(tiny, monkeypatch, steps):
    run = tiny.run(ADDRESS)
    training.train(run)
    whole = results(run)
    shutil.rmtree(run.folder)
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Interrupted, match="SIGTERM: saved in epoch"):
            training.train(run)
    assert not (run.folder / "run.json").exists()
    torch.rand(3)  # what happens in between must not matter
    training.train(run)
    assert results(run) == whole


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_command_line_turns_a_signal_into_status_75(tiny, monkeypatch, capsys, number):
    stop_after(monkeypatch, 3, number)
    assert main(["train", "--study", str(tiny.path), "--run", ADDRESS]) == 75
    assert f"interrupted: {number.name}: saved in epoch 1, step 3" in capsys.readouterr().err
    assert main(["train", "--study", str(tiny.path), "--run", ADDRESS]) == 0


def test_the_memory_recorded_is_the_most_that_any_process_of_the_run_held(tiny, monkeypatch):
    run = tiny.run(ADDRESS)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(training, "peak_memory", lambda device: {"main": 9e9})
        stop_after(patch, 25)
        training.train(run)
    training.train(run)
    assert json.loads((run.folder / "run.json").read_text())["peak_memory_mb"] == {"main": 9e9}


def test_minutes_between_checkpoints_count_within_an_epoch(write_study, monkeypatch):
    overrides = [*TINY["overrides"], {"set": {"resources": {"checkpoint_minutes": 1e-9}}}]
    run = Study(write_study(TINY | {"overrides": overrides})).run(ADDRESS)
    saved = []
    monkeypatch.setattr(checkpoint, "save_checkpoint", lambda path, digest, state: saved.append(state["step_count"]))
    training.train(run)
    assert saved == [*range(1, 22), 0, *range(1, 22), 0]


def test_a_checkpoint_of_another_configuration_is_refused_by_name(tiny, caplog):
    run = tiny.run(ADDRESS)
    training.train(run)
    expected = results(run)
    trainer = training.Trainer(run, torch.device("cpu"))
    trainer.epoch = 2
    (run.folder / "run.json").unlink()
    checkpoint.previous(run.folder / "checkpoint.pt").unlink()
    for _ in range(2):
        checkpoint.save_checkpoint(run.folder / "checkpoint.pt", "another", trainer.state_dict())
    with caplog.at_level("INFO"):
        training.train(run)
    assert "checkpoint.pt is not used: it belongs to another configuration or code" in caplog.text
    assert "starting from the beginning" in caplog.text
    assert results(run) == expected


def test_a_hostile_pickle_is_refused_and_not_executed(tiny, tmp_path, caplog):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    run = tiny.run(ADDRESS)
    run.folder.mkdir(parents=True)
    path, buffer = run.folder / "checkpoint.pt", io.BytesIO()
    torch.save({"digest": "any", "state": Hostile()}, buffer)
    for content, sentence in (
        (buffer.getvalue(), "it holds something other than tensors and plain values"),
        (pickle.dumps(Hostile()), "it is not a checkpoint of ours"),
        (b"", "it is not a checkpoint of ours"),
    ):
        path.write_bytes(content + hashlib.sha256(content).digest())
        assert checkpoint.load_checkpoint(path, "any") is None
        assert sentence in caplog.text
        caplog.clear()
    assert not (tmp_path / "owned").exists()


def test_two_processes_on_one_run_are_kept_apart(tiny):
    run = tiny.run(ADDRESS)
    with sole_writer(run.folder, "train"):
        command = [sys.executable, "-m", "sat_core", "train", "--study", str(tiny.path), "--run", ADDRESS]
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "another process does this (train) already" in second.stderr


def test_the_lock_dies_with_its_holder(tiny):
    folder = tiny.run(ADDRESS).folder
    code = f"""
import sys, time; from pathlib import Path; from sat_core.runs.files import sole_writer
with sole_writer(Path({str(folder)!r}), "train"):
    print("held", flush=True); time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="another process"), sole_writer(folder, "train"):
        pass
    holder.kill()
    holder.communicate()
    with sole_writer(folder, "train"):
        pass


def test_divergence_names_the_place_and_keeps_the_last_checkpoint(write_study):
    overrides = [*TINY["overrides"], {"set": {"training": {"lr": 1e20}}}]
    run = Study(write_study(TINY | {"overrides": overrides})).run(ADDRESS)
    trainer = training.Trainer(run, torch.device("cpu"))
    digest = training.training_digest(run)
    checkpoint.save_checkpoint(run.folder / "checkpoint.pt", digest, trainer.state_dict())
    before = (run.folder / "checkpoint.pt").read_bytes()
    with pytest.raises(ConfigError, match=r"diverged: .* epoch 1, step \d+, at learning rate 1e\+20, defense psat"):
        training.train(run)
    assert (run.folder / "checkpoint.pt").read_bytes() == before


def test_out_of_memory_is_one_sentence(tiny, monkeypatch, capsys):
    def hungry(self, index, x, y):
        return torch.empty(2**60)  # the real allocator refuses

    monkeypatch.setattr(training.Trainer, "step", hungry)
    assert main(["train", "--study", str(tiny.path), "--run", ADDRESS]) == 2
    assert "error: out of memory; lower training.batch_size" in capsys.readouterr().err


def test_out_of_gpu_memory_in_evaluation_halves_the_batch(tiny, monkeypatch, caplog):
    run = tiny.run(ADDRESS)
    training.train(run)
    model = evaluation.trained_model(run, torch.device("cpu"))[0]
    x, y = evaluation.load(run, "test")[0].batch(slice(12))
    sizes, original = [], evaluation.pyautoattack.AutoAttack.run_standard_evaluation

    def limited(self, x, y, batch_size):
        sizes.append(batch_size)
        if batch_size > 4:
            raise torch.OutOfMemoryError
        return original(self, x, y, batch_size=batch_size)

    monkeypatch.setattr(evaluation.pyautoattack.AutoAttack, "run_standard_evaluation", limited)
    broken_by = [""] * 12
    settings = {"epsilon": 0.3, "seed": 0, "classes": 10, "broken_by": broken_by}
    assert evaluation.attack_block(model, x, y, "apgd-ce", batch_size=500, **settings) == 3
    assert sizes == [500, 6, 3] and "going on with 3 images" in caplog.text
    assert "apgd-ce" in broken_by
    sizes.clear()
    original = lambda self, x, y, batch_size: (x, y)  # noqa: E731  (an attack that fails, so that each has its turn)
    evaluation.evaluate(run)
    assert len(set(sizes)) > 1 and len(set(sizes[-4:])) == 1  # what fits is not found out anew by each attack
    assert read_json(run.folder / "autoattack.json")["batch_size"] == sizes[-1] <= 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study folder with one run trained and judged, in blocks of 5 images."""
    folder = tmp_path_factory.mktemp("finished")
    study = TINY | {"overrides": [*TINY["overrides"], {"set": {"evaluation": {"batch_size": 5}}}]}
    study["tables"] = {"digits": TINY["tables"]["digits"] | {"defenses": ["psat"]}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(study))
    here = Path.cwd()
    os.chdir(folder)
    run = Study("tiny.yaml").run(ADDRESS)
    training.train(run)
    evaluation.evaluate(run)
    expected = results(run)
    os.chdir(here)
    return folder, expected


@pytest.fixture
def copy(finished, tmp_path, monkeypatch):
    """A copy of the finished study, as the working directory; its run, and what its files held."""
    folder, expected = finished
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return Study("tiny.yaml").run(ADDRESS), expected


def test_shards_and_interruptions_do_not_change_the_verdict(copy, monkeypatch):
    run, expected = copy
    for name in ("autoattack.csv", "autoattack.json"):
        (run.folder / name).unlink()
    original, calls = evaluation.attack_block, []

    def dying(*arguments, **options):
        calls.append(arguments[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(evaluation, "attack_block", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(run, (2, 2))
    evaluation.evaluate(run, (2, 2))  # block 1 goes on with its third attack
    assert calls == ["apgd-ce", "apgd-t", "fab-t", "fab-t", "square"]
    evaluation.evaluate(run, (1, 2))
    assert len(calls) == 13
    evaluation.evaluate(run)
    assert len(calls) == 13  # all that was left was to merge
    assert results(run) == expected
    assert not (run.folder / evaluation.PARTS).exists()


def test_a_block_of_other_weights_is_judged_again(copy):
    run, expected = copy
    (run.folder / "autoattack.json").unlink()
    evaluation.evaluate(run, (1, 3))
    block = run.folder / evaluation.PARTS / "block0000.json"
    write_json(block, read_json(block) | {"weights": "others", "broken_by": [""] * 5})
    evaluation.evaluate(run)
    assert results(run) == expected


def test_a_damaged_block_is_judged_again(copy, caplog):
    run, expected = copy
    (run.folder / "autoattack.json").unlink()
    evaluation.evaluate(run, (1, 3))
    block = run.folder / evaluation.PARTS / "block0000.json"
    block.write_text(block.read_text().replace("apgd-ce", "apgd-xx"))
    evaluation.evaluate(run)
    assert "the block is judged again" in caplog.text
    assert results(run) == expected


FILES = ("checkpoint.pt", "model.safetensors", "history.csv", "run.json", "autoattack.csv", "autoattack.json")


@pytest.mark.parametrize("name", [*FILES, "data"])
def test_truncation_anywhere_is_told_or_mended_and_never_believed(copy, name, capsys):
    run, expected = copy
    path = Path("results/tiny/data/digits.safetensors") if name == "data" else run.folder / name
    content, told = path.read_bytes(), 0
    offsets = [*random.Random(0).sample(range(len(content)), 19), len(content) - 1]
    words = ["--study", "tiny.yaml", "--run", ADDRESS]
    for offset in offsets:
        path.write_bytes(content[:offset])
        statuses = [main([verb, *words]) for verb in ("train", "evaluate")]
        statuses.append(main(["table", "--study", "tiny.yaml", "--table", "digits"]))
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert all(s == 0 or (s == 2 and "error: " in error) for s in statuses)
        told += any(statuses)
        if not any(statuses):
            assert results(run) == expected
        path.write_bytes(content)
        for rest in FILES:
            if not (run.folder / rest).exists():  # pragma: no cover
                raise AssertionError(rest)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tiny, caplog):
    run = tiny.run(ADDRESS)
    training.train(run)
    whole = results(run)
    shutil.rmtree(run.folder)
    digest, trainer = training.training_digest(run), training.Trainer(run, torch.device("cpu"))
    path = run.folder / "checkpoint.pt"
    checkpoint.save_checkpoint(path, digest, trainer.state_dict())
    run_epoch(trainer)
    checkpoint.save_checkpoint(path, digest, trainer.state_dict())
    content = path.read_bytes()
    for offset in random.Random(1).sample(range(len(content)), 20):
        path.write_bytes(content[:offset])
        caplog.clear()
        with caplog.at_level("INFO"):
            state = checkpoint.load_checkpoint(path, digest)
        assert state["epoch"] == 0
        assert "checkpoint.pt is not used: it is damaged" in caplog.text
        assert "resuming from" in caplog.text and "checkpoint.previous.pt" in caplog.text
    training.train(run)
    assert results(run) == whole


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem needs root")
def test_a_full_disk_is_one_sentence_and_training_goes_on_after(tiny, capsys, tmp_path):
    run = tiny.run(ADDRESS)
    training.train(run)
    whole = results(run)
    shutil.rmtree("results")
    Path("results").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", "results"], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a filesystem")
    words = ["train", "--study", str(tiny.path), "--run", ADDRESS]
    try:
        trainer = training.Trainer(run, torch.device("cpu"))
        checkpoint.save_checkpoint(run.folder / "checkpoint.pt", training.training_digest(run), trainer.state_dict())
        before = (run.folder / "checkpoint.pt").read_bytes()
        filler = Path("results/filler")
        with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass
            file.write(bytes(4096))
        assert main(words) == 2
        assert "cannot be written: No space left on device; make space and run this again" in capsys.readouterr().err
        assert (run.folder / "checkpoint.pt").read_bytes() == before
        assert not [p for p in run.folder.iterdir() if p.name.startswith(".checkpoint")]
        filler.unlink()
        assert main(words) == 0
        assert results(run) == whole
    finally:
        subprocess.run(["umount", "-l", "results"], check=True)  # lazily: mapped data may still be held


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), atomic(path) as file:
        file.write("half")
        1 / 0  # noqa: B018
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_an_edited_result_is_not_believed(copy, capsys):
    run, _ = copy
    path = run.folder / "autoattack.json"
    path.write_text(path.read_text().replace('"robust": 0', '"robust": 1'))
    assert json.loads(path.read_text())["robust"] >= 1
    with pytest.raises(ConfigError, match="damaged"):
        write_table(Study("tiny.yaml"), "digits")


@pytest.mark.slow
def test_snakemake_killed_outright_recovers_as_documented(tmp_path, monkeypatch):
    for part in ("sat_core", "workflow", "config", "profiles", "envs"):
        shutil.copytree(REPOSITORY / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    study = TINY | {"tables": {"digits": TINY["tables"]["digits"] | {"defenses": ["psat"]}}}
    study["overrides"] = [*TINY["overrides"], {"set": {"training": {"epochs": 20, "milestones": []}}}]
    (tmp_path / "config/tiny.yaml").write_text(yaml.safe_dump(study))
    snakemake = [str(Path(sys.executable).with_name("snakemake")), "--configfile", "config/tiny.yaml"]
    folder = tmp_path / "results/tiny/runs" / ADDRESS
    started = subprocess.Popen(snakemake, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.previous.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    subprocess.run(["pkill", "-KILL", "-f", f"sat_core train --study {tmp_path}"], check=False)  # as documented
    assert not (folder / "run.json").exists()
    subprocess.run([*snakemake, "--unlock"], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(snakemake, cwd=tmp_path, check=True, capture_output=True)
    log = (tmp_path / "results/tiny/logs/train" / f"{ADDRESS}.log").read_text()
    assert "resuming from" in log
    history = pd.read_csv(folder / "history.csv")
    assert history["epoch"].tolist() == list(range(20))
    (tmp_path / "fresh").mkdir()
    monkeypatch.chdir(tmp_path / "fresh")
    fresh = Study(tmp_path / "config/tiny.yaml").run(ADDRESS)
    training.train(fresh)
    assert (fresh.folder / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
