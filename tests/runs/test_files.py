"""Files are whole or absent, on full disks too, and a run's folder has one writer at a time."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import PSAT, results

from sat_core.__main__ import main
from sat_core.errors import ConfigError
from sat_core.runs import checkpoint, folder
from sat_core.runs.files import atomic, read_json, sole_writer, write_json
from sat_core.runs.train import train
from sat_core.runs.trainer import Trainer


def test_two_processes_on_one_run_are_kept_apart(tiny):
    run = tiny.run(PSAT)
    with sole_writer(run.folder, "train"):
        command = [sys.executable, "-m", "sat_core", "train", "--study", str(tiny.path), "--run", PSAT]
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "another process does this (train) already" in second.stderr


def test_the_lock_dies_with_its_holder(tiny):
    place = tiny.run(PSAT).folder
    code = f"""
import sys, time; from pathlib import Path; from sat_core.runs.files import sole_writer
with sole_writer(Path({str(place)!r}), "train"):
    print("held", flush=True); time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="another process"), sole_writer(place, "train"):
        pass
    holder.kill()
    holder.communicate()
    with sole_writer(place, "train"):
        pass


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), atomic(path) as file:
        file.write("half")
        1 / 0  # noqa: B018
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, Path.replace

    def synced(number):
        done.append(("synced", str(Path(f"/proc/self/fd/{number}").readlink())))
        fsync(number)

    def renamed(path, name):
        done.append(("renamed", str(path)))
        return rename(path, name)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    with atomic(tmp_path / "file.json") as file:
        file.write("whole")
    (first, path), (second, also) = done
    assert (first, second) == ("synced", "renamed") and path == also


def test_a_file_that_may_not_grow_is_a_sentence_and_the_old_one_stays(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"file.json cannot be written: File too large; run this again"):
            write_json(path, {"a": "b" * 10_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_a_closed_output_is_no_traceback(tiny):
    said = subprocess.run(
        f"{sys.executable} -m sat_core status --study {tiny.path} >&-", shell=True, capture_output=True, text=True
    )
    assert said.returncode == 1 and "Traceback" not in said.stderr
    subprocess.run(f"{sys.executable} -m sat_core check --study {tiny.path} >&- 2>&-", shell=True, check=True)


def test_from_elsewhere_a_study_says_where_its_results_are(judged, monkeypatch, capsys, tmp_path_factory):
    home = Path.cwd()
    (home / "docs").mkdir()
    away = tmp_path_factory.mktemp("away")
    for place, study in ((home / "docs", "../tiny.yaml"), (away, f"{home}/tiny.yaml")):
        monkeypatch.chdir(place)
        for verb in ("status", "table", "report"):
            assert main([verb, "--study", study]) == 2
            assert f"results of {study} are in {home}/results/tiny: call it from {home}" in capsys.readouterr().err
        assert not Path("results").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem needs root")
def test_a_full_disk_is_one_sentence_and_training_goes_on_after(tiny, capsys, tmp_path):
    run = tiny.run(PSAT)
    train(run)
    whole = results(run)
    shutil.rmtree("results")
    Path("results").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", "results"], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a filesystem")
    words = ["train", "--study", str(tiny.path), "--run", PSAT]
    try:
        trainer = Trainer(run, torch.device("cpu"))
        checkpoint.save_checkpoint(run.folder / "checkpoint.pt", folder.present(run, "train"), trainer.state_dict())
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
