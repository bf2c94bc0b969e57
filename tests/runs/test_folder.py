"""What is finished stays; what is accepted is on record; what belongs to another study is left alone."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import MADRY, PSAT, damage, edited, tiny_with
from safetensors.torch import load_file, save_file

from sat_core.__main__ import main
from sat_core.errors import ConfigError, Hopeless, Interrupted
from sat_core.runs import folder
from sat_core.runs.data import prepare
from sat_core.runs.device import free_gpu, take_device
from sat_core.runs.evaluate import evaluate
from sat_core.runs.files import checksum, read_json, sole_writer, write_json
from sat_core.runs.train import train
from sat_core.runs.trainer import Trainer
from sat_core.study import Run, Study, fingerprint
from sat_core.workflow import asked_for, restarts, stale, tell_without_gpu


def test_deleted_results_are_put_back_as_the_same_files(judged):
    run = judged.run(PSAT)
    files = [run.folder / name for about in folder.STAGES.values() for name in (about.record, *about.files)]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files if path.exists()}
    assert len(before) == 6
    for path in before:
        path.unlink()
    assert folder.finished(run, "evaluate") and folder.finished(run, "train")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert all(path.samefile(run.folder / folder.KEPT / path.name) for path in before)


def test_damaged_results_are_put_back_where_what_was_kept_is_another_file(judged):
    """As in a copy of the folder, or where there are no hard links."""
    run = judged.run(PSAT)
    files = [run.folder / name for about in folder.STAGES.values() for name in (about.record, *about.files)]
    before = {path: path.read_bytes() for path in files if path.exists()}
    for path in before:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:50])
        (run.folder / folder.CHECKPOINT).unlink(missing_ok=True)
        assert folder.finished(run, "train") and folder.finished(run, "evaluate")
        assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["autoattack.csv", "examples.npz", "history.csv"])
def test_a_damaged_file_makes_its_stage_stale_and_what_was_kept_of_it_does_not_come_back(judged, name):
    run = judged.run(PSAT)
    stage = "train" if name == "history.csv" else "evaluate"
    assert folder.is_current(run, stage)
    damage(run, name)
    (reason,) = folder.why_again(run, stage)
    assert reason.endswith(f"{name} is damaged; it will be made again") and not folder.is_current(run, stage)
    (run.folder / name).unlink()
    assert folder.why_again(run, stage) == [f"{name} is missing"]
    assert main([stage, "--study", "tiny.yaml", "--run", PSAT]) == 0
    assert folder.is_current(run, stage) and main(["table", "--study", "tiny.yaml"]) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else needs root")
def test_what_somebody_else_keeps_to_himself_is_not_adopted(judged):
    shutil.copy(judged.path, "ours.yaml")
    theirs, ours = judged.run(PSAT), Study("ours.yaml").run(PSAT)
    prepare(ours)
    for path in (Path.cwd(), *Path("results").rglob("*")):
        path.chmod(0o777)
    (theirs.folder / "run.json").chmod(0o600)
    here = os.fork()
    if not here:
        os.setuid(65534)
        os._exit(folder.adopt(ours, "train"))
    assert os.waitpid(here, 0)[1] == 0
    assert folder.adopt(ours, "train")


def test_what_was_kept_of_other_settings_is_not_put_back(judged):
    run = judged.run(PSAT)
    (run.folder / "run.json").unlink()
    content = judged.path.read_text().replace("epochs: 2\n", "epochs: 3\n")
    judged.path.write_text(content)
    assert not folder.finished(Study(judged.path).run(PSAT), "train")
    assert not (run.folder / "run.json").exists()


def changed(study: Study, **training) -> Run:
    """The run as it is once the study is another."""
    content = yaml.safe_load(study.path.read_text())
    content["overrides"].append({"set": {"training": training}})
    Path("changed.yaml").write_text(yaml.safe_dump(content))
    return Study("changed.yaml").run(PSAT).model_copy(update={"study": study.name})


def test_a_finished_run_survives_that_a_training_of_other_settings_was_begun_and_given_up(write_study):
    study = Study(write_study(tiny_with(training={"snapshots": 1})))
    run = study.run(PSAT)
    train(run)
    record = read_json(run.folder / "run.json")
    assert {"last.safetensors", run.training.snapshot(2)} <= set(record["files"])
    (run.folder / folder.CARD).touch()
    folder.withdraw(changed(study, lr=0.01), "train")
    assert not (run.folder / folder.CARD).exists()
    for name in record["files"]:
        (run.folder / name).unlink(missing_ok=True)
        (run.folder / name).write_text("of the other")
    assert folder.finished(run, "train") and read_json(run.folder / "run.json") == record
    assert {name: checksum(run.folder / name) for name in record["files"]} == record["files"]
    (run.folder / "last.safetensors").unlink()
    assert folder.finished(run, "train")


def test_a_verdict_survives_that_another_was_begun_and_given_up(judged, monkeypatch):
    run = judged.run(PSAT)
    verdict, images = folder.judged(run)
    content = yaml.safe_load(judged.path.read_text())
    other = copy.deepcopy(content)
    other["overrides"].append({"set": {"evaluation": {"images": 3}}})
    judged.path.write_text(yaml.safe_dump(other))

    def killed(*_):
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(folder, "write_record", killed)
        evaluate(Study(judged.path).run(PSAT))
    assert folder.judged(Study(judged.path).run(PSAT)) is None
    judged.path.write_text(yaml.safe_dump(content))
    again, rows = folder.judged(Study(judged.path).run(PSAT))
    assert again == verdict and rows.equals(images)


def test_a_training_is_of_the_images_that_it_loaded_whatever_is_prepared_meanwhile(tiny, monkeypatch):
    run, finish = tiny.run(MADRY), Trainer.finish_epoch

    def prepared_anew(trainer):
        finish(trainer)
        path = folder.data_file(run).with_suffix(".json")
        record = read_json(path)
        record["train"]["sha256"] = "of others"
        write_json(path, record)

    monkeypatch.setattr(Trainer, "finish_epoch", prepared_anew)
    train(run)
    assert folder.why_again(run, "train") == ["the train images are others"]


def test_nothing_is_adopted_while_another_process_trains_the_run(judged):
    content = judged.path.read_text()
    Path("second.yaml").write_text(content)
    run = Study("second.yaml").run(PSAT)
    prepare(run)
    with sole_writer(run.folder, "train"):
        assert not folder.adopt(run, "train") and not (run.folder / "run.json").exists()
    assert folder.adopt(run, "train") and folder.finished(run, "train")


def test_code_can_be_accepted_on_record_and_settings_cannot(judged, monkeypatch, capsys):
    run = judged.run(PSAT)
    true = fingerprint.code.__wrapped__
    monkeypatch.setattr(fingerprint, "code", lambda *modules: true(*modules) | {"attacks": "of tomorrow"})
    assert folder.why_again(run, "train") == ["sat_core/attacks.py changed"]
    content = yaml.safe_load(judged.path.read_text())
    content["tables"]["digits"]["defenses"] = ["madry", "psat"]  # one that is not trained yet
    judged.path.write_text(yaml.safe_dump(content))
    assert main(["accept", "--study", "tiny.yaml"]) == 0
    assert f"{PSAT}: train: sat_core/attacks.py changed" in capsys.readouterr().out
    assert not folder.why_again(run, "train") and not folder.why_again(run, "evaluate")
    assert main(["accept", "--study", "tiny.yaml"]) == 0 and "nothing to accept" in capsys.readouterr().out
    (note,) = read_json(run.folder / "run.json")["accepted"]
    assert note["changes"] == ["sat_core/attacks.py changed"] and note["by"] and note["at"] and "commit" in note
    assert note["now"]["attacks"] == "of tomorrow" != note["before"]["attacks"]
    main(["report", "--study", "tiny.yaml"])
    assert "accepted although sat_core/attacks.py changed" in Path("results/tiny/report.html").read_text()

    judged.path.write_text(judged.path.read_text().replace("epochs: 2\n", "epochs: 3\n"))
    assert main(["accept", "--study", "tiny.yaml"]) == 2
    assert "only changed code can be accepted, not this: training.epochs 2 -> 3" in capsys.readouterr().err


def test_nothing_of_other_settings_is_adopted(judged):
    shutil.copy(judged.path, "second.yaml")
    run = edited(Study("second.yaml"), training={"lr": 0.01}).run(PSAT)
    prepare(run)
    assert not folder.adopt(run, "train") and not (run.folder / "run.json").exists()


def test_a_run_that_cannot_be_accepted_costs_no_other_its_acceptance(judged, monkeypatch, capsys):
    run = judged.run(PSAT)
    content = yaml.safe_load(judged.path.read_text())
    content["tables"]["digits"] |= {"defenses": ["madry", "psat"]}
    changed = {"where": {"defense": "madry"}, "set": {"training": {"lr": 0.01}}}
    judged.path.write_text(yaml.safe_dump(content))
    madry = Study(judged.path).run(MADRY)
    train(madry)
    content["overrides"].append(changed)
    judged.path.write_text(yaml.safe_dump(content))
    true = fingerprint.code.__wrapped__
    monkeypatch.setattr(fingerprint, "code", lambda *modules: true(*modules) | {"attacks": "of tomorrow"})
    assert main(["accept", "--study", "tiny.yaml"]) == 2
    said = capsys.readouterr()
    assert "run.json: only changed code can be accepted, not this: training.lr 0.05 -> 0.01" in said.err
    assert f"{PSAT}: train: sat_core/attacks.py changed" in said.out and not folder.why_again(run, "evaluate")


def test_each_stage_is_told_as_stale_that_does_not_come_after_another_that_is(measured):
    study = edited(measured, curvature={"images": 41})
    folder_of = study.run(MADRY).folder
    assert set(stale(study)) == {str(folder_of / "curvature.json"), str(folder_of / "landscape.json")}
    content = yaml.safe_load(measured.path.read_text())
    content["tables"]["digits"]["curvature"] = []  # and none that nobody asks for
    measured.path.write_text(yaml.safe_dump(content))
    assert set(stale(Study(measured.path))) == {str(folder_of / "landscape.json")}


def test_what_one_stage_finishes_leaves_the_failure_of_another_on_record(judged):
    run = judged.run(PSAT)
    folder.give_up(run, "curvature", Hopeless("out of memory"))
    (run.folder / "checkpoint.pt").touch()
    folder.count_interruption(run, "train")
    (run.folder / "landscape.npz").touch()
    folder.write_record(run, "landscape", {"weights": folder.weights(run)})
    assert folder.hopeless(run, "curvature") == "out of memory" and folder.interruptions(run) == 1
    folder.write_record(run, "evaluate", folder.record_of(run, "evaluate"))
    assert folder.hopeless(run, "curvature") and not folder.interruptions(run)
    folder.write_record(run, "curvature", {"weights": folder.weights(run)})
    assert not folder.hopeless(run, "curvature")


def test_a_run_of_no_name_is_no_run_and_what_cannot_be_read_is_one_sentence(judged, capsys):
    assert main(["train", "--study", "tiny.yaml", "--run", ""]) == 2
    path = judged.run(PSAT).folder / "run.json"
    path.unlink()
    path.mkdir()
    for verb in ("status", "table", "report"):
        assert main([verb, "--study", "tiny.yaml"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {path}: Is a directory"


def test_two_studies_of_one_name_are_not_mixed(judged, capsys):
    Path("elsewhere").mkdir()
    other = Path("elsewhere/tiny.yaml")
    other.write_text(judged.path.read_text())
    assert main(["table", "--study", str(other)]) == 2
    assert (
        "results/tiny holds the results of tiny.yaml; elsewhere/tiny.yaml has the same name" in capsys.readouterr().err
    )
    Path("linked").symlink_to(Path.cwd())  # as a home on a cluster often is
    assert main(["table", "--study", "linked/tiny.yaml"]) == 0
    shutil.copy(judged.path, "copy.yaml")
    shutil.copytree("results/tiny", "results/copy")  # under the name that it has now
    assert main(["table", "--study", "copy.yaml"]) == 0
    judged.path.unlink()  # a study file that moved takes its results along
    assert main(["table", "--study", str(other)]) == 0


def test_changed_pixels_of_the_prepared_images_are_noticed(judged, capsys):
    run = judged.run(PSAT)
    path = folder.data_file(run)
    tensors = load_file(path)
    tensors["test.pixels"][0, 0, 0, 0] ^= 1
    save_file(tensors, path, {"scale": "16"})
    (run.folder / "autoattack.json").unlink()
    (run.folder / folder.KEPT / "autoattack.json").unlink()
    assert main(["evaluate", "--study", "tiny.yaml", "--run", PSAT]) == 2
    assert "is damaged: its test images changed; delete it, it will be made again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "part, stage, other",
    [("train", "train", "evaluate"), ("validation", "train", "evaluate"), ("test", "evaluate", "train")],
)
def test_other_images_make_what_is_of_them_a_thing_of_the_past(judged, part, stage, other):
    run = judged.run(PSAT)
    path = folder.data_file(run).with_suffix(".json")
    record = read_json(path)
    record[part]["sha256"] = "0" * 64
    write_json(path, record)
    assert folder.why_again(run, stage) == [f"the {part} images are others"]
    assert not folder.why_again(run, other)


def test_weights_that_are_not_finite_are_refused_not_judged(judged, capsys):
    run = judged.run(PSAT)
    path = run.folder / folder.WEIGHTS
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    path.unlink()
    save_file(tensors, path)
    record = read_json(run.folder / "run.json")
    record["files"][folder.WEIGHTS] = checksum(path)
    write_json(run.folder / "run.json", record)
    assert main(["evaluate", "--study", "tiny.yaml", "--run", PSAT]) == 2
    assert "holds numbers that are not finite" in capsys.readouterr().err


def test_a_damaged_landscape_lets_the_report_fail_after_it_is_written(measured, capsys):
    run = measured.runs[0]
    damage(run, "landscape.npz")
    assert main(["report", "--study", "tiny.yaml"]) == 2
    assert "landscape.npz is damaged" in capsys.readouterr().err
    assert "landscape.npz is damaged" in Path("results/tiny/report.html").read_text()


def test_what_cannot_succeed_is_not_tried_again_until_something_changes(write_study, tiny_study, monkeypatch):
    study = Study(write_study(tiny_study))
    run = study.run(PSAT)
    assert restarts(study, "train", PSAT, budget=5) == 5
    folder.give_up(run, "train", Hopeless("training diverged"))
    assert restarts(study, "train", PSAT, budget=5) == restarts(study, "evaluate", PSAT, budget=5) == 0
    tiny_study["overrides"][0]["set"]["training"]["lr"] = 0.01
    changed = Study(write_study(tiny_study))
    assert restarts(changed, "train", PSAT, budget=5) == 5


def test_what_is_finished_is_not_tried_again(judged):
    assert restarts(judged, "train", PSAT, budget=5) == restarts(judged, "evaluate", PSAT, budget=5) == 0


def test_data_of_other_settings_are_told_as_stale(judged):
    found = stale(edited(judged, validation={"fraction": 0.2}))
    assert "data of digits again: validation.fraction 0.1 -> 0.2" in found.values()


@pytest.mark.parametrize(
    ("resources", "shards", "memory", "minutes"),
    [
        ({"gpus": 1, "runs_per_gpu": 2}, 1, 12_000 // 6, 600 // 2),
        ({"gpus": 1, "runs_per_gpu": 2}, 4, 12_000 // 6, 600 // 3),
        ({"gpus": 1, "runs_per_gpu": 1}, 4, 12_000, 600),
        ({"gpus": 0, "runs_per_gpu": 2}, 4, 12_000, 600),
    ],
)
def test_runs_of_an_allocation_ask_for_no_more_than_it_has_all_together(
    write_study, resources, shards, memory, minutes
):
    """Side by side they judge, measure and lay planes; one after the other they train, judge in shards, judge."""
    content = tiny_with(resources=resources | {"mem_mb": 1500, "train_minutes": 20}, evaluation={"shards": shards})
    run = Study(write_study(content)).run(PSAT)
    assert asked_for(run, "mem_mb", 1, 12_000) == 1500 and asked_for(run, "train_minutes", 2, 600) == 40
    assert asked_for(run, "mem_mb", 99, 12_000) == memory and asked_for(run, "train_minutes", 99, 600) == minutes


def test_a_time_limit_is_no_failure_as_long_as_there_is_progress(write_study, tiny_study):
    study = Study(write_study(tiny_study))
    run = study.run(PSAT)
    run.folder.mkdir(parents=True)
    for expected in (1, 2):
        (run.folder / "checkpoint.pt").write_text(f"{expected}")
        folder.count_interruption(run, "train")
        assert folder.interruptions(run) == expected
    folder.count_interruption(run, "train")  # nothing new was saved
    folder.count_interruption(run, "evaluate")  # nor by this
    assert folder.interruptions(run) == 2
    assert restarts(study, "train", PSAT, budget=5) == 7
    assert asked_for(run, "mem_mb", 3, 10**9) == run.resources.mem_mb  # nor does it ask for more


def test_gpus_are_shared_out_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("sat_core.runs.device.HELD", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert [free_gpu(3) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,9")
    assert free_gpu(2) == 1  # GPU 9 is free, GPU 5 has two already
    assert free_gpu(1) == 0


def test_a_study_for_gpus_on_a_machine_without_says_so(write_study, tmp_path, monkeypatch, caplog):
    study = Study(write_study(tiny_with(resources={"train_minutes": 61})))
    monkeypatch.setattr("sat_core.workflow.DRIVERS", (str(tmp_path),))
    tell_without_gpu(study)
    monkeypatch.setattr("sat_core.workflow.DRIVERS", (str(tmp_path / "none"),))
    tell_without_gpu(Study(write_study()))  # minutes on a processor, too
    assert not caplog.text
    tell_without_gpu(study)
    assert "no GPU is seen on this machine" in caplog.text


def test_a_process_stays_on_the_gpu_that_it_took(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("sat_core.runs.device.HELD", [])
    taken = []
    monkeypatch.setattr("sat_core.runs.device.try_gpu", taken.append)
    for name, value in (("is_available", True), ("device_count", 2)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for _ in range(3):
        take_device(tiny.run(PSAT))
    assert taken == [0]


def test_records_are_json_that_says_what_results_are_made_of(judged):
    made_of = json.loads((judged.run(PSAT).folder / "run.json").read_text())["made_of"]
    assert made_of["settings"]["training.lr"] == 0.05
    assert {"attacks", "defenses.psat", "models.cnn", "runs.trainer"} <= set(made_of["code"])
    assert not {"defenses.madry", "models.smallcnn", "study", "runs.files"} & set(made_of["code"])
    with pytest.raises(ConfigError, match="there is nothing to accept"):
        judged.run(PSAT).folder.rename("gone")
        folder.accept(judged.run(PSAT))


def test_the_seconds_of_a_verdict_are_those_of_all_attacks_also_on_the_last_epoch():
    verdict = {"seconds": {"apgd-ce": 1.5, "square": 2.5}}
    assert folder.seconds_of(verdict) == 4
    assert folder.seconds_of(verdict | {"last": {"seconds": {"apgd-ce": 1.0}}}) == 5
    assert folder.seconds_of({"seconds": 7.0}) == 7
    assert folder.seconds_of({}) is None
