"""Saving and loading the state of a training and the weights it selects."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from sat_core.config import ConfigError
from sat_core.files import atomic


def save_checkpoint(path: Path, digest: str, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) with the digest of the configuration and code it belongs to."""
    with atomic(path, "wb") as file:
        torch.save({"digest": digest, "rng": rng_state(), "state": state}, file)


def load_checkpoint(path: Path, digest: str) -> tuple[dict[str, Any] | None, str]:
    """The state saved at ``path`` and a sentence about it; None if there is none or it belongs to something else.

    Restores the random number generators when a state is returned.
    """
    if not path.exists():
        return None, "no checkpoint: starting from the beginning"
    content = torch.load(path, map_location="cpu", weights_only=True)
    if content["digest"] != digest:
        return None, f"{path} is of another configuration or code: it is not used, training starts from the beginning"
    restore_rng(content["rng"])
    return content["state"], f"resuming from {path}"


def rng_state() -> dict[str, Any]:
    """The state of every global random number generator: Python, NumPy, torch on CPU and GPUs."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def save_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write weights as safetensors: nothing but tensors, safe to load from anyone."""
    with atomic(path, "wb") as file:
        file.write(save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load weights into ``model``; raises ConfigError if the file is missing, damaged or of another network."""
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigError(f"{path}: cannot be loaded as this run's weights: {' '.join(str(error).split())}") from None
