"""Pre-activation residual networks for small colour images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """BN, ReLU, conv, BN, ReLU, conv, plus the input; where shapes differ, a 1x1 conv of the activated input."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        same = channels == width and stride == 1
        self.shortcut = None if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        return skip + self.conv2(F.relu(self.bn2(self.conv1(active))))


def residual(channels: int, classes: int, stem: int, widths: list[int], depth: int) -> nn.Module:
    """``depth`` blocks of each width; every width after the first halves the resolution."""
    layers: list[nn.Module] = [nn.Conv2d(channels, stem, 3, padding=1, bias=False)]
    before = stem
    for i, width in enumerate(widths):
        for j in range(depth):
            layers.append(Block(before, width, stride=2 if i > 0 and j == 0 else 1))
            before = width
    head = [nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)]
    return nn.Sequential(*layers, *head)
