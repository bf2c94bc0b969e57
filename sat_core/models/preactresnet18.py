"""PreActResNet-18."""

from __future__ import annotations

from torch import nn

from sat_core.models._residual import residual


def preactresnet18(image: tuple[int, int, int], classes: int) -> nn.Module:
    """PreActResNet-18 with a final batch norm, as in Rice et al. 2020; 11,172,170 parameters for CIFAR-10."""
    return residual(image[0], classes, stem=64, widths=[64, 128, 256, 512], depth=2)
