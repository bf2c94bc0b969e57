"""Locks where the file system has none: a library that refuses ``flock`` stands before the real one."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import MADRY, PSAT

REFUSING = r"""
#include <errno.h>
#include <stdlib.h>
int flock(int fd, int operation) {
    (void)fd;
    (void)operation;
    errno = atoi(getenv("FLOCK_ERRNO"));
    return -1;
}
"""


@pytest.fixture(scope="module")
def refusing(tmp_path_factory) -> Path:
    """The library, built here."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("preload")
    (folder / "flock.c").write_text(REFUSING)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "flock.so", folder / "flock.c"], check=True)
    return folder / "flock.so"


def train(run: str, environment: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "sat_core", "train", "--study", "tiny.yaml", "--run", run]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_where_flock_is_refused_a_killed_training_is_taken_over_at_once(refusing, write_study, tiny_study, number):
    tiny_study["overrides"][0]["set"]["training"]["epochs"] = 200
    tiny_study["overrides"][0]["set"]["resources"] = {"checkpoint_minutes": 0.001}
    write_study(tiny_study)
    environment = os.environ | {"LD_PRELOAD": str(refusing), "FLOCK_ERRNO": str(number)}
    first = train(MADRY, environment)
    checkpoint = Path("results/tiny/runs", MADRY, "checkpoint.pt")
    limit = time.monotonic() + 120
    while not checkpoint.exists():
        assert first.poll() is None and time.monotonic() < limit, first.stderr.read()
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()

    began = time.monotonic()
    second = train(MADRY, environment)
    for line in second.stderr:
        if "resuming from" in line:
            break
    assert "resuming from" in line and time.monotonic() - began < 50
    os.killpg(second.pid, signal.SIGKILL)
    second.wait()


def test_where_flock_is_refused_two_writers_are_kept_apart_by_a_sentence_that_names_the_lock(
    refusing, write_study, tiny_study, monkeypatch
):
    from sat_core.errors import ConfigError
    from sat_core.runs import files

    monkeypatch.setattr(files, "LEASE", 1.0)
    write_study(tiny_study)

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    folder = Path("results/tiny/runs", PSAT)
    with (
        files.sole_writer(folder, "train"),
        pytest.raises(ConfigError, match=r"another process does this .*\.train\.lease"),
        files.sole_writer(folder, "train"),
    ):
        pass
    with files.sole_writer(folder, "train"):
        pass
