"""Torchvision's ResNet-34."""

from __future__ import annotations

from torch import nn


def resnet34(image: tuple[int, int, int], classes: int) -> nn.Module:
    """Torchvision's ResNet-34, for Imagenette; 21,289,802 parameters for 10 classes."""
    from torchvision import models

    if image[0] != 3 or min(image[1:]) < 64:
        raise ValueError("it needs colour images of at least 64x64")
    return models.resnet34(num_classes=classes)
