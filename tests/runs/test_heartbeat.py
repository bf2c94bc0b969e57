"""Whoever works on a run says so while it lives, and at no other time; what is watched does not change by it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from helpers import PSAT, results, tiny_with
from torch import nn

from sat_core.errors import ConfigError, Interrupted
from sat_core.judge import ATTACKS, attack_standing
from sat_core.runs import folder, heartbeat
from sat_core.runs.heartbeat import Beat, Heart, beating, beats, epochs_done, file_system_time, is_lost
from sat_core.runs.judging import Judging, passes
from sat_core.runs.train import train
from sat_core.study import Study


def heard(run):
    return beats(run, file_system_time(run.folder))


def test_a_process_that_is_killed_is_taken_for_dead_within_a_minute(write_study, tmp_path):
    run = Study(write_study(tiny_with(training={"epochs": 10_000, "milestones": []}))).run(PSAT)
    with (tmp_path / "log").open("w") as log:
        work = [sys.executable, "-m", "sat_core", "train", "--study", "tiny.yaml", "--run", PSAT]
        process = subprocess.Popen(work, stderr=log)
    try:
        while epochs_done(run) < 2:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        ((beat, age),) = heard(run)
        assert (beat.work, beat.process) == ("train", process.pid) and not is_lost(beat, age)
    finally:
        process.kill()
        process.wait()
    path = run.folder / ".train.beat.json"
    killed_at = path.stat().st_mtime
    ((beat, _),) = beats(run, killed_at + 11)
    assert is_lost(beat, 11.0)  # the process is not there any more
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "another"}))
    os.utime(path, (killed_at, killed_at))
    for later, lost in ((59, False), (61, True)):
        ((beat, age),) = beats(run, killed_at + later)
        assert is_lost(beat, age) == lost
    lines = (tmp_path / "log").read_text().splitlines()
    assert any(re.match(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d {PSAT} epoch 1/10000: loss", line) for line in lines)


def test_the_age_of_a_beat_does_not_hang_on_anybodys_clock(judged, monkeypatch):
    run, clock = judged.run(PSAT), time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 7200)  # of whoever writes
    Heart(run.folder / ".train.beat.json", Beat("train", "")).write()
    monkeypatch.setattr(time, "time", lambda: clock() + 7200)  # of whoever reads
    ((beat, age),) = heard(run)
    assert age < 30 and beat.at < clock() - 7000
    os.utime(run.folder / ".train.beat.json", (clock() + 300, clock() + 300))  # that of the files was set back
    ((beat, age),) = heard(run)
    assert is_lost(beat, age)
    assert not list(run.folder.glob(".clock*"))


def test_it_beats_while_a_single_step_takes_long_and_is_silent_at_the_end(judged, monkeypatch):
    run = judged.run(PSAT)
    monkeypatch.setattr(heartbeat, "PERIOD", 0.02)
    with beating(run, "curvature") as heart:
        heart.tell("something long", 0.5, 40.0)
        path, seen = run.folder / ".curvature.beat.json", set()
        while len(seen) < 3:
            seen.add(path.stat().st_mtime_ns)
        assert heard(run)[0][0].doing == "something long"
    assert not heard(run)


@pytest.mark.parametrize(
    ("error", "ended"), [(ConfigError("it is wrong"), "failed"), (Interrupted("SIGTERM: saved"), "interrupted")]
)
def test_the_last_beat_says_what_went_wrong(judged, error, ended):
    run = judged.run(PSAT)
    with pytest.raises(type(error)), beating(run, "evaluate", "evaluate-1-of-2"):
        raise error
    ((beat, age),) = heard(run)
    assert (beat.work, beat.ended, beat.said) == ("evaluate-1-of-2", ended, str(error))
    assert not is_lost(beat, age + 1e6)


def test_a_heartbeat_that_cannot_be_written_stops_nothing(judged):
    run = judged.run(PSAT)
    (run.folder / ".landscape.beat.json").mkdir()
    with beating(run, "landscape"):
        pass


def test_history_grows_by_the_epoch_and_after_a_resume_is_that_of_an_uninterrupted_run(write_study, monkeypatch):
    content = tiny_with(training={"epochs": 4}, resources={"checkpoint_minutes": 1e-9})
    whole, run = (Study(write_study(content, name)).run(PSAT) for name in ("whole", "tiny"))
    train(whole)
    expected, rows = results(whole), []
    write = folder.write_history

    def killed_after_three(run, history):
        write(run, history)
        rows.append(len(pd.read_csv(run.folder / "history.csv")) if history else 0)
        if rows == [0, 1, 2, 3]:
            raise MemoryError  # no checkpoint is saved of the third epoch, as if the process had been killed

    monkeypatch.setattr(folder, "write_history", killed_after_three)
    with pytest.raises(MemoryError):
        train(run)
    unfinished = heartbeat.unfinished_history(run).drop(columns="seconds").to_csv()
    assert expected[1].startswith(unfinished) and unfinished.count("\n") == 4
    assert heartbeat.unfinished_history(whole).empty
    rows.clear()
    train(run)
    assert rows == [2, 3, 4]  # the third is told again: the checkpoint knows two
    assert results(run) == expected


def test_a_training_of_other_settings_does_not_cost_a_finished_one(judged, monkeypatch):
    run = judged.run(PSAT)
    whole, text = results(run), judged.path.read_text(encoding="utf-8")
    judged.path.write_text(text.replace("epochs: 2", "epochs: 3"))
    other = Study(judged.path).run(PSAT)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("sat_core.runs.train.tell", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        train(other)
    assert not (run.folder / "run.json").exists() and not folder.finished(other, "train")
    assert folder.finished(run, "train") and folder.finished(run, "evaluate")
    assert results(run) == whole


def test_watching_an_attack_counts_its_passes_and_changes_no_verdict(tmp_path, monkeypatch, caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval().requires_grad_(False)
    x = torch.rand(6, 1, 8, 8)
    y = model(x).argmax(dim=1)
    heart = Heart(tmp_path / "beat", Beat("evaluate", ""))
    told = []
    monkeypatch.setattr(heartbeat, "LOG_EVERY", 0.0)
    tell = heart.tell
    monkeypatch.setattr(heart, "tell", lambda *said: (told.append(said), tell(*said))[0])
    for epsilon, iterations in ((0.001, None), (0.001, 4), (0.05, 4)):
        judging, verdicts = Judging(heart, 2, classes=10, iterations=iterations), []
        for watched in (False, True) if iterations else (True,):
            block = {"broken_by": [""] * len(x), "seconds": {}}
            for attack in ATTACKS:
                told.clear()
                options = {"epsilon": epsilon, "seed": 1, "classes": 10, "batch_size": 6}
                options |= {"broken_by": block["broken_by"], "iterations": iterations}
                if watched:
                    with caplog.at_level("INFO"), judging.attack(model, attack, block):
                        attack_standing(model, x, y, attack, **options)
                else:
                    attack_standing(model, x, y, attack, **options)
                block["seconds"][attack] = 1.0
                if watched and epsilon == 0.001:
                    assert len(told) == passes(attack, 10, iterations)
                    shares = [share for _, share, _ in told]
                    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] <= 0.5
            verdicts.append(block["broken_by"])
        assert verdicts[0] == verdicts[-1]
        assert (len(set(verdicts[0])) > 1) == (epsilon > 0.01)
    assert not model._forward_hooks
    assert "attack 4/4 (square) of block 1/2, 6 images left, about" in caplog.text
