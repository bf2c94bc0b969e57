"""TRADES' published network for MNIST."""

from __future__ import annotations

from torch import nn


def smallcnn(image: tuple[int, int, int], classes: int) -> nn.Module:
    """Four 3x3 convolutions of 32, 32, 64 and 64 channels, pooled in pairs, and three linear layers, for 28x28 images.

    As in Zhang et al. 2019 (TRADES), without their dropout; 312,202 parameters for MNIST.
    """
    if image[1:] != (28, 28):
        raise ValueError("it is made for 28x28 images")
    return nn.Sequential(
        nn.Conv2d(image[0], 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 200),
        nn.ReLU(),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Linear(200, classes),
    )
