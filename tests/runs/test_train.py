"""Training real, small runs: nothing is lost to signals, and what goes wrong is one sentence."""

import json
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from helpers import MADRY, PSAT, TINY, forget, results, stop_after, tiny_with

from sat_core import models
from sat_core.__main__ import main
from sat_core.attacks import PGD
from sat_core.errors import ConfigError, Hopeless, Interrupted
from sat_core.runs import check, checkpoint, folder
from sat_core.runs.device import has_kernels, take_device
from sat_core.runs.files import read_json
from sat_core.runs.images import Images
from sat_core.runs.network import accuracies, predict
from sat_core.runs.train import train
from sat_core.runs.trainer import Trainer
from sat_core.study import Study


@pytest.mark.parametrize("steps", [1, 9, 20, 21, 22, 41])
def test_a_signal_at_any_step_costs_nothing(judged, monkeypatch, steps):
    run = judged.run(PSAT)
    forget(run, "evaluate")
    whole = results(run)
    shutil.rmtree(run.folder)
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Interrupted, match="SIGTERM: saved in epoch"):
            train(run)
    assert not (run.folder / "run.json").exists()
    torch.rand(3)  # what happens in between must not matter
    train(run)
    assert results(run) == whole


@pytest.mark.parametrize(
    ("name", "training"), [("cat", {}), ("madry", {"average": "ema"}), ("madry", {"epochs": 3, "milestones": [2]})]
)
def test_radii_of_samples_averages_of_weights_and_milestones_outlive_a_signal(write_study, monkeypatch, name, training):
    content = tiny_with(training=training, data={"train_images": 300})
    content["tables"] = {"digits": TINY["tables"]["digits"] | {"defenses": ["cat", "madry", "psat"]}}
    whole, cut = (Study(write_study(content, study)).run(MADRY.replace("madry", name)) for study in ("whole", "cut"))
    train(whole)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 7)
        train(cut)
    train(cut)
    assert results(cut) == results(whole)


def test_history_and_record_say_what_happened_and_the_weights_are_those_of_the_best_epoch(write_study, monkeypatch):
    run = Study(write_study(tiny_with(training={"snapshots": 1}))).run(PSAT)
    monkeypatch.setattr(Trainer, "score", lambda self, clean, robust: (-self.epoch,))  # that is the first, here
    train(run)
    history, record = pd.read_csv(run.folder / "history.csv"), read_json(run.folder / "run.json")
    assert history["lambda"].tolist() == [0.01, 1.0]
    stopped, steps = history["stopped"][0], history["steps"][0]
    assert 0 < stopped < 1 and 2 - 2 * stopped < steps < 2 - stopped
    assert (history["stopped"][1], history["steps"][1]) == (0, 2)
    assert record["best_epoch"] == 0
    assert record["validation"] == {name: history[f"validation_{name}"][0] for name in ("clean", "robust")}
    names = ("model.safetensors", run.training.snapshot(1), "last.safetensors", run.training.snapshot(2))
    selected, first, last, second = ((run.folder / name).read_bytes() for name in names)
    assert selected == first != last == second


def _lost(run, path):
    path.unlink()
    (run.folder / folder.KEPT / path.relative_to(run.folder)).unlink()


@pytest.mark.parametrize("spoil", [_lost, lambda _, path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_finished_training_whose_snapshot_is_spoilt_begins_anew(write_study, monkeypatch, spoil, caplog):
    run = Study(write_study(tiny_with(training={"snapshots": 1}))).run(PSAT)
    with monkeypatch.context() as patch:
        stop_after(patch, 30)
        with pytest.raises(Interrupted, match="saved in epoch 2"):
            train(run)
    train(run)
    snapshot = run.folder / run.training.snapshot(1)
    kept, whole = snapshot.read_bytes(), results(run)
    assert "begins anew" not in caplog.text and run.training.snapshot(1) in folder.record_of(run, "train")["files"]
    spoil(run, snapshot)
    (run.folder / "history.csv").unlink()  # what is lost otherwise comes from the checkpoint
    train(run)
    assert "training begins anew, as no checkpoint holds it" in caplog.text
    assert snapshot.read_bytes() == kept and results(run) == whole and folder.finished(run, "train")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP])
def test_the_command_line_turns_a_signal_into_status_75(tiny, monkeypatch, capsys, request, number):
    before = signal.signal(number, signal.SIG_DFL)  # under nohup one is ignored
    request.addfinalizer(lambda: signal.signal(number, before))
    stop_after(monkeypatch, 3, number)
    assert main(["train", "--study", str(tiny.path), "--run", PSAT]) == 75
    assert f"interrupted: {number.name}: saved in epoch 1, step 3" in capsys.readouterr().err
    assert main(["train", "--study", str(tiny.path), "--run", PSAT]) == 0


def test_the_memory_recorded_is_the_most_that_any_process_of_the_run_held(tiny, monkeypatch):
    run = tiny.run(PSAT)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("sat_core.runs.trainer.peak_memory", lambda device: {"main": 9e9})
        stop_after(patch, 25)
        train(run)
    train(run)
    assert json.loads((run.folder / "run.json").read_text())["peak_memory_mb"] == {"main": 9e9}


def test_minutes_between_checkpoints_count_within_an_epoch(write_study, monkeypatch):
    run = Study(write_study(tiny_with(resources={"checkpoint_minutes": 1e-9}))).run(PSAT)
    saved = []
    monkeypatch.setattr(checkpoint, "save_checkpoint", lambda path, made_of, state: saved.append(state["step_count"]))
    train(run)
    assert saved == [*range(1, 22), *range(1, 22), 0]


def test_divergence_names_the_place_and_keeps_the_last_checkpoint(write_study):
    run = Study(write_study(tiny_with(training={"lr": 1e20}))).run(PSAT)
    trainer = Trainer(run, torch.device("cpu"))
    checkpoint.save_checkpoint(run.folder / "checkpoint.pt", folder.present(run, "train"), trainer.state_dict())
    before = (run.folder / "checkpoint.pt").read_bytes()
    with pytest.raises(ConfigError, match=r"diverged: .* epoch 1, by step 21, at learning rate 1e\+20, defense psat"):
        train(run)
    assert (run.folder / "checkpoint.pt").read_bytes() == before


def test_no_checkpoint_holds_a_loss_that_is_not_finite(write_study):
    hasty = {"training": {"lr": 1e20}, "resources": {"checkpoint_minutes": 1e-9}}
    run = Study(write_study(tiny_with(**hasty))).run(PSAT)
    with pytest.raises(Hopeless):
        train(run)
    state = checkpoint.load_checkpoint(run.folder / "checkpoint.pt", lambda _: [])
    assert state["step_count"] and state["sums"].isfinite().all()


def test_nor_does_the_one_before_a_long_validation(tiny, monkeypatch):
    run, validate = tiny.run(PSAT), Trainer.validate

    def spoilt(self):
        found = validate(self)
        for weights in self.model.parameters():
            weights.data.mul_(1e30)
        return found

    monkeypatch.setattr("sat_core.runs.train.LONG", 0)
    monkeypatch.setattr(Trainer, "validate", spoilt)
    with pytest.raises(Hopeless, match="the loss is"):
        train(run)
    assert not (run.folder / "checkpoint.pt").exists()


def test_out_of_memory_is_one_sentence(tiny, monkeypatch, capsys):
    def hungry(self, index, x, y):
        return torch.empty(2**60)  # the real allocator refuses

    monkeypatch.setattr(Trainer, "step", hungry)
    assert main(["train", "--study", str(tiny.path), "--run", PSAT]) == 2
    assert "error: out of memory; lower training.batch_size" in capsys.readouterr().err
    monkeypatch.setattr(check, "check", lambda *_: torch.empty(2**60))
    assert main(["check", "--study", str(tiny.path)]) == 2
    assert capsys.readouterr().err == "error: out of memory\n"  # which no setting of a study is about


@pytest.mark.parametrize(
    "words, surely",
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", False),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", False),
        ("GET was unable to find an engine to execute this computation", False),
    ],
)
def test_what_is_surely_a_gpu_without_memory_is_not_tried_again(tiny, monkeypatch, capsys, words, surely):
    """What may as well be one that is out of order is, as that of another node may be in order."""

    def hungry(self, index, x, y):
        raise RuntimeError(words)

    monkeypatch.setattr(Trainer, "step", hungry)
    for again in (False, True):
        assert main(["train", "--study", str(tiny.path), "--run", PSAT]) == 2
        said = capsys.readouterr().err
        assert "out of memory on the GPU; lower training.batch_size" in said
        assert ("(found before" in said) == (again and surely)
        assert surely or f"unless the GPU is out of order; it said: {words}" in said


def test_a_gpu_that_others_have_filled_is_tried_again(tiny, monkeypatch, capsys):
    def hungry(self, index, x, y):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "step", hungry)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1e9, 80e9))
    properties = SimpleNamespace(name="A100", total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    lower = "out of memory on A100 with 80 GB; lower training.batch_size\n"
    for reserved, said in ((60e9, "runs_per_gpu: others work"), (78.5e9, lower), (60e9, "(found before")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda reserved=reserved: reserved)
        assert main(["train", "--study", str(tiny.path), "--run", PSAT]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "capability, built, runs",
    [
        ((9, 0), ["sm_75", "sm_80", "sm_90"], True),
        ((8, 6), ["sm_75", "sm_80", "sm_90"], True),  # as 8.0 does
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),  # V100 and CUDA 13
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "compute_90"], True),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_80", "sm_90a"], False),
        ((10, 3), ["sm_90", "sm_100", "sm_120"], True),
    ],
)
def test_whether_torch_has_kernels_for_a_gpu(capability, built, runs):
    assert has_kernels(capability, built) == runs


def test_a_gpu_that_torch_has_no_kernels_for_or_that_fails_is_one_sentence(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    with pytest.raises(ConfigError, match=r"no kernels for this job's GPU, Tesla V100 \(sm_70\), only for sm_75, "):
        take_device(tiny.run(PSAT))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ConfigError, match=r"Tesla V100, fails at the first kernels: .*to go on without a GPU"):
        take_device(tiny.run(PSAT))  # there is none in this machine


def test_the_precision_of_auto_is_on_record_and_outlives_a_change_of_device(write_study, monkeypatch, caplog):
    caplog.set_level("INFO")
    run = Study(write_study(tiny_with(training={"precision": "auto", "average": "ema"}))).run(PSAT)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("sat_core.runs.trainer.best_precision", lambda device: "bfloat16")
        stop_after(patch, 3)
        train(run)
    assert "emulates" not in caplog.text
    monkeypatch.setattr("sat_core.runs.trainer.best_precision", lambda device: "float32")
    precisions = []
    validate = Trainer.validate
    monkeypatch.setattr(Trainer, "validate", lambda self: precisions.append(self.network.in_bfloat16) or validate(self))
    train(run)
    assert precisions and all(precisions)  # of the averaged weights, too
    assert "training in bfloat16 on CPU" in caplog.text and "which emulates it" in caplog.text
    record = json.loads((run.folder / "run.json").read_text())
    assert record["precision"] == "bfloat16" and record["made_of"]["settings"]["training.precision"] == "auto"
    assert not folder.differences(run, "train", record["made_of"])


def test_tf32_is_on_record_only_where_it_was_computed_in(write_study, caplog):
    run = Study(write_study(tiny_with(training={"precision": "tf32"}))).run(PSAT)
    train(run)
    assert json.loads((run.folder / "run.json").read_text())["precision"] == "float32"
    assert "tf32 is not to be had on CPU" in caplog.text


def test_before_a_long_validation_a_checkpoint_is_saved(tiny, monkeypatch):
    """It is killed in the second: all steps before it are kept."""
    run = tiny.run(PSAT)
    monkeypatch.setattr("sat_core.runs.train.LONG", 0)
    validate, validated = Trainer.validate, []

    def killed(self):
        validated.append(self.epoch)
        if len(validated) == 2:
            raise SystemExit
        return validate(self)

    monkeypatch.setattr(Trainer, "validate", killed)
    with pytest.raises(SystemExit):
        train(run)
    state = checkpoint.load_checkpoint(run.folder / "checkpoint.pt", lambda _: [])
    assert (state["epoch"], state["step_count"]) == (1, Trainer(run).steps_an_epoch)
    monkeypatch.setattr(Trainer, "validate", validate)
    train(run)
    resumed = (run.folder / "model.safetensors").read_bytes()
    shutil.rmtree(run.folder)
    train(run)
    assert (run.folder / "model.safetensors").read_bytes() == resumed


def test_a_gpu_is_used_if_wanted_and_one_that_torch_cannot_use_is_told(write_study, tmp_path, monkeypatch, caplog):
    run, alone = (Study(write_study(study)).run(PSAT) for study in (TINY, tiny_with(resources={"gpus": 0})))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sat_core.runs.device.DRIVER", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert take_device(run).type == "cpu"
    assert "sees no GPU, though there is a driver for one" in caplog.text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert take_device(alone).type == "cpu"
    with pytest.raises(ConfigError, match="cannot use the GPU that this job was given: its driver may be too old"):
        take_device(run)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match="given: this torch is built for processors alone"):
        take_device(run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert take_device(alone).type == "cpu"


@pytest.mark.parametrize(("off", "expected"), [(0, (1, 1)), (1, (0, 0))])
def test_validation_counts_every_image_of_a_partial_batch_too(off, expected):
    """Of those that are all classified, or all misclassified."""
    model = models.build("cnn", (1, 8, 8), 10, mean=[0.0], std=[1.0])
    images = Images(torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8), torch.zeros(5, dtype=torch.int64))
    images.labels[:] = (predict(model, images.batch(slice(None))[0]) + off) % 10
    assert accuracies(model, images, PGD(1e-6, 1e-7, 1), 2) == expected


def test_an_unusable_results_folder_is_one_sentence(tiny, capsys):
    (tiny.path.parent / "results").write_text("in the way")
    assert main(["train", "--study", str(tiny.path), "--run", PSAT]) == 2
    assert "cannot be used as an output folder" in capsys.readouterr().err


def test_a_whole_run_is_judged_in_the_process_that_trained_it(judged, capsys):
    (run,) = judged.runs
    verdict = (run.folder / "autoattack.csv").read_bytes()
    forget(run, "evaluate")
    assert main(["train", "--study", "tiny.yaml", "--run", PSAT, "--whole"]) == 0
    assert (run.folder / "autoattack.csv").read_bytes() == verdict
    assert not (run.folder / "curvature.json").exists()  # which no table asks for


def test_a_whole_run_does_not_wait_for_the_compiler(write_study, tiny_study):
    """Torch imports it, or sympy, in as much time as itself, wherever something asks to be hidden from it."""
    tiny_study["tables"]["digits"] |= {"curvature": ["psat"], "landscapes": ["psat"]}
    small = {"curvature": {"images": 10}, "landscape": {"points": 3}, "evaluation": {"images": 6}}
    study = Study(write_study(tiny_study | {"overrides": [*tiny_study["overrides"], {"set": small}]}))
    code = (
        "import sys; from sat_core.__main__ import main; "
        "sys.exit(main(sys.argv[1:]) or bool({'torch._dynamo', 'sympy'} & {*sys.modules}))"
    )
    command = [sys.executable, "-c", code, "train", "--study", str(study.path), "--run", PSAT, "--whole"]
    assert subprocess.run(command, timeout=300).returncode == 0
    assert all(folder.finished(study.run(PSAT), stage) for stage in folder.STAGES)


def test_what_comes_after_training_and_fails_is_left_to_its_own_job(judged, caplog):
    (run,) = judged.runs
    forget(run, "evaluate")
    folder.give_up(run, "evaluate", Hopeless("it cannot be judged"))
    assert main(["train", "--study", "tiny.yaml", "--run", PSAT, "--whole"]) == 0
    assert f"evaluate of {PSAT} is left to its own job: it cannot be judged" in caplog.text
    assert main(["evaluate", "--study", "tiny.yaml", "--run", PSAT]) == 2


@pytest.mark.parametrize(
    ("name", "training", "begins"),
    [
        ("madry", {}, 0),
        ("madry", {"awp": {"gamma": 0.01, "warm_up": 3}}, 3),
        ("mail", {"awp": {"gamma": 0.01, "warm_up": 3}}, 6),
        ("gairat", {"average": "swa", "average_from": 7}, 7),
    ],
)
def test_it_is_on_record_when_all_that_a_run_is_named_for_begins(write_study, name, training, begins):
    content = {"tables": {"digits": TINY["tables"]["digits"] | {"defenses": [name]}}}
    content["overrides"] = [{"set": {"training": {"epochs": 8, "milestones": [4], **training}}}]
    run = Study(write_study(content)).run(f"digits/cnn/{name}/eps0.3/seed0")
    assert Trainer(run, torch.device("cpu")).begins == begins
