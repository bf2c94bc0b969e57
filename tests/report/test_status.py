"""What `status` says of a real study, from its beginning to its end."""

import os
import re
import subprocess
import sys

import pytest
from helpers import MADRY, PSAT, stop_after

from sat_core.__main__ import main
from sat_core.errors import ConfigError, Interrupted
from sat_core.report import products
from sat_core.report.page.entries import describe
from sat_core.report.status import look
from sat_core.runs import folder
from sat_core.runs.data import prepare
from sat_core.runs.evaluate import evaluate
from sat_core.runs.heartbeat import Beat, Heart, beating, hash_of
from sat_core.runs.train import train
from sat_core.study import Study
from sat_core.workflow import to_redo


def said(study: Study) -> dict[str, tuple[str, str]]:
    """Defense -> what is said of its run."""
    return {state.run.defense: (state.word, state.text) for state in look(study).states}


def test_from_waiting_to_complete(judged, capsys):
    def status() -> tuple[int, str]:
        code = main(["status", "--study", "tiny.yaml"])
        return code, capsys.readouterr().out

    code, out = status()
    assert code == 1 and "1 runs, 1 done. To be made: tables/digits, figures/digits-tradeoff" in out
    verdict = folder.record_of(judged.run(PSAT), "evaluate")
    clean, robust = (f"{100 * verdict[name]:.1f} %" for name in ("clean", "robust"))
    assert clean != robust and re.search(rf"{PSAT} +done +clean {clean}, robust {robust}", out)
    assert main(["report", "--study", "tiny.yaml"]) == 0
    (judged.run(PSAT).folder / "curvature.json").write_text("of an earlier study, and damaged")
    code, out = status()
    assert code == 0 and "All is complete." in out
    assert main(["status", "--study", "tiny.yaml", "--watch"]) == 0
    judged.path.write_text(judged.path.read_text().replace("epochs: 2", "epochs: 3"))
    code, out = status()
    assert code == 1 and re.search(rf"{PSAT} +stale +train: training.epochs 2 -> 3", out)
    (state,) = look(Study(judged.path)).states
    records = {stage: folder.record_of(state.run, stage) for stage in ("train", "evaluate")}
    assert state.left == {stage: folder.seconds_of(record) for stage, record in records.items()}


def test_an_unknown_study_is_status_2(tmp_path):
    assert main(["status", "--study", str(tmp_path / "none.yaml")]) == 2


@pytest.mark.parametrize("verb", ["check", "status"])
def test_who_reads_along_may_stop(tiny, verb):
    """Such as `head`."""
    command = [sys.executable, "-m", "sat_core", verb, "--study", str(tiny.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 1)


def test_what_is_said_of_runs_at_work_killed_failed_and_waiting(tiny):
    madry, psat = tiny.run(MADRY), tiny.run(PSAT)
    assert said(tiny)["madry"] == ("waiting", "for its training")
    prepare(psat)
    with pytest.raises(ConfigError, match="not trained yet"):
        evaluate(psat)
    assert said(tiny)["psat"][0] == "failed"
    train(psat)
    assert said(tiny)["psat"] == ("waiting", "for AutoAttack")
    madry.folder.mkdir(parents=True)
    with beating(psat, "evaluate", "evaluate-1-of-2") as heart, beating(madry, "train") as other:
        heart.tell("attack 3/4 (fab-t) of block 5/20, 9 images left", 0.25, 300.0)
        other.beat.job = "55"
        for each in (heart, other):
            each.write()
        assert said(tiny)["madry"] == ("training", "starting (SLURM 55)")
        word, text = said(tiny)["psat"]
        assert word == "judging" and text.startswith("attack 3/4 (fab-t) of block 5/20, 9 images left (")
        now = look(tiny)
        assert now.counts == {"training": 1, "judging": 1} and now.left == "about 7 min left, 2 at a time"
        left = {state.run.defense: state.left for state in now.states}
        assert left["psat"] == {"evaluate": 300.0}
        seconds = folder.record_of(psat, "train")["seconds"]
        assert left["madry"] == {"train": seconds, "evaluate": 400.0}  # of its peer, 300 s are left after a quarter
    with pytest.raises(MemoryError), beating(madry, "train"):
        raise MemoryError("no more of it")
    assert said(tiny)["madry"] == ("failed", "train: no more of it")
    path = madry.folder / ".train.beat.json"
    Heart(path, Beat("train", hash_of(madry, "train"), "epoch 2/3, step 4/21", host="another", process=7)).write()
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 50))
    assert said(tiny)["madry"] == ("training", "epoch 2/3, step 4/21 (another, process 7)")
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 20))
    word, text = said(tiny)["madry"]
    assert word == "lost" and re.fullmatch(
        r"no sign of life for 7\d s \(another, process 7\): epoch 2/3, step 4/21", text
    )


def test_a_job_that_failed_before_it_began_is_known_by_its_log_until_the_study_is_edited(tiny):
    log = tiny.folder / f"logs/train/{MADRY}.log"
    log.parent.mkdir(parents=True)
    log.write_text("Traceback (most recent call last):\nModuleNotFoundError: No module named 'torch'\n")
    assert said(tiny)["madry"] == ("failed", "train: ModuleNotFoundError: No module named 'torch'")
    assert describe(tiny, tiny.run(MADRY)).state == "✗ train failed"  # so does the report
    os.utime(tiny.path, (log.stat().st_atime, log.stat().st_mtime + 1))
    assert said(tiny)["madry"] == ("waiting", "for its training")
    assert describe(tiny, tiny.run(MADRY)).state == "— train not done"


def test_why_there_is_no_data_is_said_of_the_runs_that_wait_for_it(tiny):
    log = tiny.folder / "logs/data/digits.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: dataset 'digits' could not be downloaded\n")
    assert said(tiny)["madry"] == ("failed", "train: its data: dataset 'digits' could not be downloaded")
    prepare(tiny.run(MADRY))
    assert said(tiny)["madry"] == ("waiting", "for its training")


def test_that_a_training_which_has_begun_will_begin_anew_is_said_before_it_does(tiny, monkeypatch, caplog):
    run = tiny.run(PSAT)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 3)
        train(run)
    assert said(tiny)["psat"] == ("waiting", "for its training") and not to_redo(tiny) and not caplog.text
    tiny.path.write_text(tiny.path.read_text().replace("epochs: 2", "epochs: 3"))
    edited = Study(tiny.path)
    anew = "begins anew: what had begun is of other settings, code or images"
    assert said(edited)["psat"] == ("waiting", f"for its training, which {anew}")
    assert said(edited)["madry"] == ("waiting", "for its training")
    assert not to_redo(edited) and caplog.messages == [f"train {PSAT} {anew}"]


def test_an_unfinished_training_is_drawn_and_drawn_again_as_it_grows(tiny, monkeypatch):
    run, epochs = tiny.run(PSAT), iter(range(9))
    curves = products.figure(tiny, "digits", "curves")
    assert not curves.is_possible

    def stop_in_the_second_epoch(*_):
        if next(epochs) == 1:
            raise Interrupted("on the way")

    write = folder.write_history
    monkeypatch.setattr(folder, "write_history", lambda *given: (write(*given), stop_in_the_second_epoch()))
    with pytest.raises(Interrupted):
        train(run)
    assert said(tiny)["psat"] == ("waiting", "epoch 1/2 is done")
    assert curves.is_possible
    curves.write()
    assert curves.is_current()
    train(run)
    assert not products.figure(tiny, "digits", "curves").is_current()
