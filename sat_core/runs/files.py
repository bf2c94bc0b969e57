"""Files that are either whole or absent, and one writer at a time in a run's folder."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import filelock
import psutil

from sat_core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

HOST = platform.node().replace(".", "-")
DAY = 24 * 3600
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems answer that have no locks, or were mounted without them (Lustre, BeeGFS, some NFS)."""
LEASE = 60.0
"""Seconds after which a lock that its holder does not renew is free, where there is no flock."""


@contextmanager
def atomic(path: Path, mode: str = "w", keep_as: Path | None = None) -> Iterator[IO[Any]]:
    """Open ``path`` for writing such that it appears under its name only once complete and on disk.

    What stood there before is kept as ``keep_as``, if given. Raises ConfigError where it cannot be written.
    (The usual library for this, atomicwrites, has been archived by its author.)
    """
    make_folder(path.parent)
    sweep(path)
    beside = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        text = "b" not in mode
        with beside.open(mode, encoding="utf-8" if text else None, newline="" if text else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep_as is not None and path.exists():
            path.replace(keep_as)
        beside.replace(path)
    except OSError as error:
        if error.filename is not None:
            raise
        remedy = "make space and run this again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "run this again"
        raise ConfigError(
            f"{path} cannot be written: {error.strerror or error}; {remedy}, it goes on from what is there"
        ) from None
    finally:
        beside.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Remove what processes that were killed while writing ``path`` have left beside it."""
    for litter in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        *_, host, process, _, _ = litter.name.split(".")
        here = host == HOST and process.isdecimal()
        with contextlib.suppress(OSError):
            if not psutil.pid_exists(int(process)) if here else time.time() - litter.stat().st_mtime > DAY:
                litter.unlink()


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(path: Path, expected: str | None) -> bool:
    """Whether a file is there and has the checksum that was recorded; raises ConfigError where it cannot be read."""
    try:
        return path.exists() and checksum(path) == expected
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def verify(path: Path, expected: str | None, remedy: str) -> None:
    """Raise ConfigError unless :func:`is_whole`."""
    if not is_whole(path, expected):
        state = "is damaged" if path.exists() else "is missing"
        raise ConfigError(f"{path} {state}; {remedy}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as indented JSON, atomically, with a checksum of itself."""
    with atomic(path) as file:
        json.dump(content | {"sha256": digest(content)}, file, indent=2, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> dict[str, Any]:
    """What :func:`write_json` wrote; raises ConfigError if the file is missing, damaged, or not to be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("sha256") == digest(content):
            return content
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise ConfigError(f"{path}: damaged (its checksum does not match); delete it and run its step again")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``npz`` file, whose parts carry checksums; raises ConfigError if it is damaged."""
    import numpy as np  # planning does without

    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise ConfigError(f"{path}: damaged; delete it and run its step again") from None


def digest(content: Any) -> str:
    """SHA-256, in hex, of what JSON can hold, whatever the order of its keys."""
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
    """Hold a run's folder for one kind of work; raises ConfigError if another process does. Dies with its holder.

    Where the file system refuses ``flock`` it is a lease, which its holder renews: one killed on this machine loses it
    at once, one on another machine within a minute.
    """
    make_folder(folder)
    path = folder / f".{work}.lock"
    lock: filelock.BaseFileLock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(blocking=False)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            lock = filelock.SoftFileLease(path.with_suffix(".lease"), lease_duration=LEASE)
            lock.acquire(timeout=LEASE + 10)
    except filelock.Timeout:
        raise ConfigError(
            f"{folder}: another process does this ({work}) already and holds {lock.lock_file}; wait for it, or stop it"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be locked: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()
