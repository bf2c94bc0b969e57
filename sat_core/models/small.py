"""A small plain network for small images."""

from __future__ import annotations

from torch import nn


def small(image: tuple[int, int, int], classes: int) -> nn.Module:
    """Three 3x3 convolutions, two of them strided, and one linear layer [C]; for any image of at least 4x4."""
    channels, height, width = image
    if min(height, width) < 4:
        raise ValueError("it needs at least 4x4")
    features = 64 * -(-height // 4) * -(-width // 4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.ReLU(),
        nn.Linear(features, classes),
    )
