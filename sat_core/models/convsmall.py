"""A smaller plain network for small images."""

from __future__ import annotations

from torch import nn


def convsmall(image: tuple[int, int, int], classes: int) -> nn.Module:
    """The MNIST network of Wong, Rice and Kolter (2020, "Fast is better than free"), for any image of at least 4x4.

    Two 4x4 convolutions of stride 2 and two linear layers: a third of ``small``'s arithmetic.
    """
    channels, height, width = image
    if min(height, width) < 4:
        raise ValueError("it needs at least 4x4")
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.Flatten(),
        nn.ReLU(),
        nn.Linear(32 * (height // 4) * (width // 4), 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )
