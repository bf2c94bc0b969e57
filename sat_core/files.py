"""Files that are either whole or absent, and one writer at a time in a run's folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import filelock

from sat_core.config import ConfigError


@contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open ``path`` for writing such that it appears under its name only once complete and on disk.

    (The usual library for this, atomicwrites, has been archived by its author.)
    """
    make_folder(path.parent)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": ""})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(beside).chmod(0o666 & ~umask)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically."""
    with atomic(path) as file:
        json.dump(content, file, indent=2, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises ConfigError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except ValueError as error:
        raise ConfigError(f"{path}: damaged ({error}); delete it and run its step again") from None


def make_folder(path: Path) -> None:
    """Create a folder and its parents; raises ConfigError where that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "it is not writable")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be used as an output folder: {error.strerror}") from None


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a run's folder; raises ConfigError if another process holds it. The lock dies with its holder."""
    make_folder(folder)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ConfigError(f"{folder}: another process is working on this run; wait for it, or stop it") from None
    with lock:
        yield
    lock.release()
