"""RobustBench's networks by its own names, and what it calls the weights of ours. Needs its package only for the first.

``mu`` and ``sigma`` are what those of its classes that normalise inside call mean and standard deviation.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from sat_core.errors import ConfigError, unknown

DATASETS = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}
"""Number of classes -> whose networks to look among."""


class Names(NamedTuple):
    """How a RobustBench class calls the parts of a pre-activation residual network."""

    depth: int
    stages: int
    block: str
    shortcut: str
    norm: str
    linear: str


OURS = {
    "preactresnet18": Names(2, 4, "layer{stage}.{block}", "shortcut.0", "bn", "linear"),
    "wrn-34-10": Names(5, 3, "block{stage}.layer.{block}", "convShortcut", "bn1", "fc"),
}
"""Our networks that are also RobustBench's: ``PreActResNet`` of ``PreActBlockV2``, with ``bn_before_fc``, and
``WideResNet``."""


def their_name(model: str, ours: str) -> str:
    """What RobustBench calls the weight ``ours`` (a key of a Normalized network's state) of one of ``OURS``."""
    names = OURS[model]
    if ours in ("mean", "std"):
        return {"mean": "mu", "std": "sigma"}[ours]
    _, number, part = ours.split(".", 2)
    blocks, index = names.depth * names.stages, int(number)
    if index == 0:
        return f"conv1.{part}"
    if index > blocks:
        return f"{names.norm if index == blocks + 1 else names.linear}.{part}"
    stage, block = divmod(index - 1, names.depth)
    return f"{names.block.format(stage=stage + 1, block=block)}.{part.replace('shortcut', names.shortcut)}"


def builder(name: str) -> Callable[[tuple[int, int, int], int], nn.Module]:
    """What makes a network of RobustBench's model zoo (L_inf), with fresh weights; raises ConfigError."""

    def build(image: tuple[int, int, int], classes: int) -> nn.Module:
        there = zoo().get(DATASETS.get(classes, ""), {})
        if name not in there:
            raise ConfigError(unknown("network of RobustBench", name, there))
        return there[name]["model"]()

    return build


def zoo() -> dict[str, dict]:
    """Dataset -> name -> what RobustBench knows of it.

    Its release asks for the package pyautoattack, and imports it by the name that it had before, autoattack.
    """
    if "autoattack" not in sys.modules and importlib.util.find_spec("autoattack") is None:
        for part in ("", ".state"):
            sys.modules[f"autoattack{part}"] = importlib.import_module(f"pyautoattack{part}")
    try:
        from robustbench.model_zoo import model_dicts
        from robustbench.model_zoo.enums import ThreatModel
    except ImportError as error:
        raise ConfigError(
            f"RobustBench cannot be imported ({error}): install robustbench, or name the network's own file, "
            "model: FILE.py:FUNCTION"
        ) from None
    return {dataset.value: threats[ThreatModel.Linf] for dataset, threats in model_dicts.items()}
