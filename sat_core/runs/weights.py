"""Weights from elsewhere: read from files that execute nothing, and fitted to a network by their names."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sat_core.errors import ConfigError
from sat_core.models import Normalized
from sat_core.models._robustbench import OURS, their_name

log = logging.getLogger(__name__)

NORMALISATION = {"mean", "std", "mu", "sigma"}
"""What the buffers of a layer that normalises images are called."""


def read(path: Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors, .pt or .pth file, by their names, those of nested mappings joined by dots.

    Raises ConfigError for a file that holds anything else than tensors and plain values: it could execute code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return dict(_flat(torch.load(path, map_location="cpu", weights_only=True)))
    except Exception as error:  # whatever a stranger's file may provoke
        if isinstance(error, pickle.UnpicklingError):
            raise ConfigError(
                f"{path} holds more than tensors and plain values, which could execute code, or is damaged: where you "
                "trust it, load it yourself, save its state_dict() alone, and take that file"
            ) from None
        raise ConfigError(f"{path} cannot be read as weights: {type(error).__name__}") from None


def _flat(content: Any, before: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield before.removesuffix("."), content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{before}{key}.")


def fit(path: Path, model: Normalized, name: str, prefix: str | None = None) -> None:
    """Load the weights in ``path`` into ``model``, of the network called ``name``; raises ConfigError.

    The names in the file are those of the network, of a network as we save it, or RobustBench's; before them may stand
    a ``prefix``, which is found where one alone fits. What the file has, the network must have, and it all its
    parameters and batch norm statistics; another buffer that the file lacks stays as the code makes it. What stands
    elsewhere in the file, such as an optimiser's, is told in the log; a normalisation there must be given.
    """
    weights, needed = read(path), _needed(model)
    if odd := [key for key, tensor in weights.items() if not tensor.isfinite().all()]:
        raise ConfigError(f"{path}: {odd[0]} holds numbers that are not finite")
    for names in _namings(model, name):
        if (before := _prefix(path, weights, [names[key] for key in needed], prefix)) is None:
            continue
        found = {ours: weights[before + theirs] for ours, theirs in names.items() if before + theirs in weights}
        if left := {key for key in weights if key.startswith(before)} - {before + theirs for theirs in names.values()}:
            raise ConfigError(f"{path}: {min(left)} is no weight of the network {name}")
        _tell_what_is_left(path, [key for key in weights if not key.startswith(before)], weights, model)
        _load(path, model, found)
        return
    expected = [(prefix or "") + key.removeprefix("network.") for key in needed]
    lacking = next(key for key in expected if key not in weights)
    held = ", ".join(list(weights)[:3]) or "nothing"
    raise ConfigError(
        f"{path} does not fit the network {name}: it lacks {lacking}, and holds {held}, ..; "
        "where its names begin with something else, say so by `prefix`"
    )


def _tell_what_is_left(path: Path, left: list[str], weights: Mapping[str, Tensor], model: Normalized) -> None:
    """Raise ConfigError for a normalisation beside the network's weights, where neither network nor study has one."""
    sizes = 1, model.mean.numel()
    norms = [key for key in _normalising(left) if weights[key].numel() in sizes]
    given = bool((model.mean != 0).any() or (model.std != 1).any())
    if norms and not given and not _normalising(model.network.state_dict()):
        raise ConfigError(
            f"{path} holds a normalisation beside the network's weights, {', '.join(norms)}: give `mean` and `std`, or "
            "a network that has it"
        )
    if left:
        log.info("%s: not the network's, left alone: %s%s", path, ", ".join(left[:3]), ", .." * (len(left) > 3))


def _normalising(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key.rpartition(".")[2] in NORMALISATION]


def _needed(model: Normalized) -> list[str]:
    """What a file must hold: every parameter, and the statistics of batch norms, but for their counters."""
    norms = [name for name, part in model.named_modules() if isinstance(part, _NormBase)]
    statistics = {f"{name}.{kind}" for name in norms for kind in ("running_mean", "running_var")}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [key for key in model.state_dict() if key in parameters or key in statistics]


def _namings(model: Normalized, name: str) -> Iterator[dict[str, str]]:
    """What the weights may be called in a file: key of the state -> name."""
    keys = list(model.state_dict())
    yield {key: key for key in keys}  # first: the second would fit such files too, and forget their mean and std
    yield {key: key.removeprefix("network.") for key in keys if key.startswith("network.")}
    if name in OURS and isinstance(model.network, nn.Sequential):  # and not another's network of that name
        yield {key: their_name(name, key) for key in keys}


def _prefix(path: Path, weights: Mapping[str, Tensor], needed: list[str], given: str | None) -> str | None:
    """What stands before the names in the file, or None where they are not there."""
    last = needed[-1]
    ends = [key[: -len(last)] for key in weights if key.endswith(last)] if given is None else [given]
    fits = [before for before in dict.fromkeys(ends) if all(before + key in weights for key in needed)]
    if len(fits) > 1:
        raise ConfigError(f"{path} holds weights for several such networks: choose by `prefix`: {', '.join(fits)}")
    return fits[0] if fits else None


def _load(path: Path, model: nn.Module, found: dict[str, Tensor]) -> None:
    state = model.state_dict()
    for key, tensor in found.items():
        if state[key].is_floating_point() and not tensor.is_floating_point():
            raise ConfigError(f"{path}: {key} holds {str(tensor.dtype).removeprefix('torch.')}, no floating point")
    try:
        model.load_state_dict(
            state | {key: tensor.reshape(_shape(key, tensor, state)) for key, tensor in found.items()}
        )
    except RuntimeError as error:
        raise ConfigError(f"{path} does not fit the network: {' '.join(str(error).split())}") from None


def _shape(key: str, tensor: Tensor, state: Mapping[str, Tensor]) -> torch.Size:
    """Mean and deviation are (C, 1, 1) here, and (1, C, 1, 1) elsewhere."""
    return state[key].shape if key in ("mean", "std") and tensor.numel() == state[key].numel() else tensor.shape
