"""Random changes to training images, as tensor code on whatever device they are on; drawn from torch's global RNG.

Each takes and returns float32 (N, C, H, W) in [0, 1].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def flip(x: Tensor) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    chosen = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return torch.where(chosen, x.flip(3), x)


def crop(x: Tensor) -> Tensor:
    """Pad by 4 black pixels and cut the original size out at a random place (TRADES' and Madry's CIFAR)."""
    height, width = x.shape[2:]
    padded = F.pad(x, (4, 4, 4, 4))
    top, left = (torch.randint(9, (len(x), 1, 1, 1), device=x.device) for _ in range(2))
    rows = (top + torch.arange(height, device=x.device).view(1, 1, -1, 1)).expand(-1, x.shape[1], -1, width + 8)
    columns = (left + torch.arange(width, device=x.device)).expand(-1, x.shape[1], height, -1)
    return padded.gather(2, rows).gather(3, columns)


def affine(x: Tensor) -> Tensor:
    """Rotate up to 5 degrees, shift up to a tenth, scale by 0.9 to 1.1, shear up to 5 degrees (the SAT authors').

    Each pixel takes the nearest of the image's, as theirs does.
    """
    degree = math.pi / 180
    angle, shear = (5 * degree * _uniform(x) for _ in range(2))
    scale = 1 + 0.1 * _uniform(x)
    shift = 0.2 * torch.stack([_uniform(x), _uniform(x)], dim=1)  # the grid is 2 wide
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    sheared = torch.eye(2, device=x.device).repeat(len(x), 1, 1)
    sheared[:, 0, 1] = shear.tan()
    return _resample(x, rotation @ sheared / scale[:, None, None], shift, "nearest")


def brightness(x: Tensor) -> Tensor:
    """Multiply each image by 0.9 to 1.1 (the SAT authors')."""
    return (x * (1 + 0.1 * _uniform(x))[:, None, None, None]).clamp_(0, 1)


def resized_crop(x: Tensor) -> Tensor:
    """Cut out 8 to 100 % of the area with sides of ratio 3/4 to 4/3, stretched to the whole (ImageNet's usual)."""
    area = 0.54 + 0.46 * _uniform(x)
    ratio = (math.log(4 / 3) * _uniform(x)).exp()
    size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp_(max=1)
    shift = (1 - size) * torch.stack([_uniform(x), _uniform(x)], dim=1)
    return _resample(x, torch.diag_embed(size), shift)


def _uniform(x: Tensor) -> Tensor:
    return 2 * torch.rand(len(x), device=x.device) - 1


def _resample(x: Tensor, matrix: Tensor, shift: Tensor, mode: str = "bilinear") -> Tensor:
    """Each output place p, in [-1, 1]^2, takes the input at ``matrix @ p + shift``; black outside."""
    grid = F.affine_grid(torch.cat([matrix, shift[:, :, None]], dim=2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode=mode, align_corners=False)


AUGMENTATIONS = {f.__name__: f for f in (flip, crop, affine, brightness, resized_crop)}
