"""Files that are either whole or absent, and one writer at a time in a run's folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np

from sat_core.config import ConfigError


@contextmanager
def atomic(path: Path, mode: str = "w", keep_as: Path | None = None) -> Iterator[IO[Any]]:
    """Open ``path`` for writing such that it appears under its name only once complete and on disk.

    What stood there before is kept as ``keep_as``, if given. Raises ConfigError where the disk is full.
    (The usual library for this, atomicwrites, has been archived by its author.)
    """
    make_folder(path.parent)
    beside = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        beside = Path(name)
        with os.fdopen(handle, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": ""})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)
        if keep_as is not None and path.exists():
            path.replace(keep_as)
        beside.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}; make space and run this again, it goes on from what is there"
        ) from None
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, expected: str, remedy: str) -> None:
    """Raise ConfigError unless the file is there and is the one whose checksum was recorded."""
    if not path.exists() or checksum(path) != expected:
        state = "is damaged" if path.exists() else "is missing"
        raise ConfigError(f"{path} {state}; {remedy}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as indented JSON, atomically, with a checksum of itself."""
    with atomic(path) as file:
        json.dump(content | {"sha256": _digest(content)}, file, indent=2, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> dict[str, Any]:
    """What :func:`write_json` wrote; raises ConfigError if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("sha256") == _digest(content):
            return content
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise ConfigError(f"{path}: damaged (its checksum does not match); delete it and run its step again")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``npz`` file, whose parts carry checksums; raises ConfigError if it is damaged."""
    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise ConfigError(f"{path}: damaged; delete it and run its step again") from None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_folder(path: Path) -> None:
    """Create a folder and its parents; raises ConfigError where that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "it is not writable")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be used as an output folder: {error.strerror}") from None


@contextmanager
def sole_writer(folder: Path, work: str) -> Iterator[None]:
    """Hold a run's folder for one kind of work; raises ConfigError if another process does. Dies with its holder."""
    make_folder(folder)
    lock = filelock.FileLock(folder / f".{work}.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ConfigError(f"{folder}: another process does this ({work}) already; wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()
