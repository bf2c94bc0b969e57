"""The paper's network for MNIST.

Where a linear layer follows, ReLU comes after flattening: the same function, but with one layout in its backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat_core.models.small import small


class FoldingConv2d(nn.Conv2d):
    """A strided convolution computed at stride 1 by a kernel of one column, on pixels gathered into channels.

    The same function of the same weights as nn.Conv2d, up to rounding; kernel and padded image must be multiples of
    the stride. Convolutions compute 16 channels at a time even where an image has one: with ``stride`` x ``stride``
    pixels, and then a row's neighbours, as channels, the gradient in the input, which attacks live on, is six times as
    fast on a processor. On a GPU, where this is so many more launches, it is computed as it stands.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return super().forward(x)
        stride, pad = self.stride[0], int(self.padding[0])
        x, weight = F.pixel_unshuffle(F.pad(x, (pad,) * 4), stride), F.pixel_unshuffle(self.weight, stride)
        columns = weight.shape[3]
        width = x.shape[3] - columns + 1
        x = torch.cat([x[..., j : j + width] for j in range(columns)], dim=1)
        return F.conv2d(x, torch.cat(weight.split(1, dim=3), dim=1), self.bias)


def cnn(image: tuple[int, int, int], classes: int) -> nn.Module:
    """The paper's MNIST network for 28x28 images [A]; its little sibling ``small`` for 8x8 ones [C]."""
    if image[1:] == (8, 8):
        return small(image, classes)
    if image[1:] != (28, 28):
        raise ValueError("it is made for 28x28 (the paper's) or 8x8 images")
    return nn.Sequential(
        FoldingConv2d(image[0], 64, 8, stride=2, padding=3),
        nn.ReLU(),
        nn.Conv2d(64, 128, 6, stride=2, padding=3),
        nn.ReLU(),
        nn.Conv2d(128, 128, 5),
        nn.Flatten(),
        nn.ReLU(),
        nn.Linear(2048, classes),
    )
