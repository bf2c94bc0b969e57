"""Saving and loading the state of a training and the weights it selects."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from sat_core.errors import ConfigError
from sat_core.runs.files import atomic

log = logging.getLogger(__name__)

CHECKSUM_BYTES = hashlib.sha256().digest_size


def save_checkpoint(path: Path, made_of: dict[str, Any], state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) with the settings and code that it belongs to.

    The file ends in the SHA-256 of what comes before. The checkpoint before it stays, as ``<stem>.previous.pt``, so
    that at every instant one whole checkpoint is on disk.
    """
    buffer = io.BytesIO()
    torch.save({"made_of": made_of, "rng": rng_state(), "state": state}, buffer)
    content = buffer.getvalue()
    with atomic(path, "wb", keep_as=previous(path)) as file:
        file.write(content)
        file.write(hashlib.sha256(content).digest())


def load_checkpoint(path: Path, changes: Callable[[dict[str, Any]], list[str]]) -> dict[str, Any] | None:
    """The state last saved at ``path``, or the one before where that is damaged; None if neither can be used.

    A checkpoint is not used where ``changes`` in what it is made of are found. Each decision is logged in a sentence.
    Restores the random number generators when a state is returned.
    """
    for candidate in (path, previous(path)):
        try:
            content = _read(candidate)
        except FileNotFoundError:
            continue
        except ValueError as error:
            log.warning("%s is not used: %s", candidate, error)
            continue
        if found := changes(content.get("made_of", {})):
            log.warning("%s is not used, it belongs to another configuration or code: %s", candidate, "; ".join(found))
            continue
        restore_rng(content["rng"])
        log.info("resuming from %s", candidate)
        return content["state"]
    log.info("no checkpoint to resume from: starting from the beginning")
    return None


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at ``path`` is kept."""
    return path.with_suffix(f".previous{path.suffix}")


def _read(path: Path) -> dict[str, Any]:
    """Raises ValueError where the file is damaged or holds anything but tensors and plain values."""
    content = path.read_bytes()
    content, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if hashlib.sha256(content).digest() != checksum:
        raise ValueError("it is damaged (its checksum does not match)")
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError("it is not a checkpoint of ours")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise ValueError("it holds something other than tensors and plain values") from None


def rng_state() -> dict[str, Any]:
    """The state of every global random number generator: Python, NumPy, torch on CPU and on the GPU in use, if any.

    A GPU that nothing has used is left alone: it may be there and not work.
    """
    state: Any = np.random.get_state()
    kind, keys, position, has_gauss, gauss = state
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_initialized() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


def save_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write weights as safetensors: nothing but tensors, safe to load from anyone."""
    with atomic(path, "wb") as file:
        file.write(save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load weights into ``model``; raises ConfigError if the file is missing, damaged, not finite or another network's.

    Judged or measured, weights of NaN would pass for a network that is always wrong.
    """
    try:
        weights = load_file(path)
        if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
            raise ConfigError(f"{path}: {bad[0]} holds numbers that are not finite; the training has diverged")
        model.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigError(f"{path}: cannot be loaded as this run's weights: {' '.join(str(error).split())}") from None
