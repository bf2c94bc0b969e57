"""WideResNet-34-10."""

from __future__ import annotations

from torch import nn

from sat_core.models._residual import residual


def wrn_34_10(image: tuple[int, int, int], classes: int) -> nn.Module:
    """WideResNet-34-10 as in TRADES; 46,160,474 parameters for CIFAR-10."""
    return residual(image[0], classes, stem=16, widths=[160, 320, 640], depth=5)
