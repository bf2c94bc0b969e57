"""Planes through a loss, as numbers.

Two move the weights, with the images held fixed: along two random directions, scaled filter by filter (Li et al.
2018), or along two given ones. A third moves the images: along the sign of the loss's gradient and along random signs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from sat_core.attacks import check_images, frozen
from sat_core.hessian.objective import Objective

Surface = Callable[[float, float], tuple[float, float]]
"""(u, v) -> loss and accuracy there."""


def grid(surface: Surface, half_width: float, points: int) -> dict[str, np.ndarray]:
    """``surface`` on a square grid of points x points around (0, 0), which is one of them if their number is odd.

    ``axis`` (points,), from -half_width to half_width; ``loss`` and ``accuracy`` (points, points), first index u.

    Example:
        A bowl, as a surface; networks have :func:`weight_plane` and :class:`ImagePlane`.

        >>> from sat_core import grid
        >>> plane = grid(lambda u, v: (u * u + v * v, 1.0), half_width=1.0, points=3)
        >>> plane["loss"].tolist()
        [[2.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 2.0]]
    """
    if points < 3 or points % 2 == 0:
        raise ValueError(f"{points} points a side have no centre; an odd number from 3 on is needed")
    axis = np.linspace(-half_width, half_width, points)
    values = np.array([[surface(u, v) for v in axis] for u in tqdm(axis, "plane", leave=False, disable=None)])
    return {"axis": axis, "loss": values[..., 0], "accuracy": values[..., 1]}


def weight_plane(objective: Objective, first: Tensor, second: Tensor) -> Surface:
    """``L(theta + u first + v second)``, a :data:`Surface`; directions (P,). The network's weights are not touched.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sat_core import Objective, grid, random_directions, weight_plane
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
        >>> objective = Objective(model, torch.rand(20, 1, 8, 8), torch.randint(10, (20,)))
        >>> surface = weight_plane(objective, *random_directions(objective, seed=0))
        >>> plane = grid(surface, half_width=1.0, points=3)
        >>> float(plane["loss"][1, 1]) == objective(objective.theta)[0]
        True
    """
    return lambda u, v: objective(objective.theta + u * first + v * second)


def reattacked_plane(objective: Objective, first: Tensor, second: Tensor, attack: Callable[[], Tensor]) -> Surface:
    """As :func:`weight_plane`, but x' is made anew against the weights of every point: the loss SAT's theory is about.

    ``attack`` () -> x' of the objective's images, against its network as it is when called. Costs as many attacks as
    there are points. The network's weights are put back after each.
    """
    parameters = list(objective.model.parameters())
    labels = torch.cat([y for _, y in objective.batches])

    def surface(u: float, v: float) -> tuple[float, float]:
        theta = objective.theta + u * first + v * second
        try:
            nn.utils.vector_to_parameters(theta.clone(), parameters)
            return Objective(objective.model, attack(), labels, len(objective.batches[0][1]))(theta)
        finally:
            nn.utils.vector_to_parameters(objective.theta.clone(), parameters)

    return surface


def random_directions(objective: Objective, seed: int) -> tuple[Tensor, Tensor]:
    """Two random directions (P,), normalised filter by filter (Li et al. 2018, section 4).

    Gaussian, the same for every network of a shape; then each filter (first index of a tensor of two dimensions or
    more) gets the norm of the network's own filter, which undoes the scale freedom of ReLU networks. One-dimensional
    parameters, biases and BatchNorm's, are zero.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sat_core import Objective, random_directions
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
        >>> objective = Objective(model, torch.rand(20, 1, 8, 8), torch.randint(10, (20,)))
        >>> first, second = random_directions(objective, seed=0)
        >>> weight = objective.weights(first)["1.weight"]
        >>> torch.allclose(weight.norm(dim=1), model[1].weight.norm(dim=1))
        True
    """
    generator = torch.Generator().manual_seed(seed)
    directions = []
    for _ in range(2):
        parts = []
        for weight in objective.weights(objective.theta).values():
            draw = torch.randn(weight.shape, generator=generator, dtype=weight.dtype).to(weight.device)
            if weight.dim() <= 1:
                draw = torch.zeros_like(draw)
            else:
                draw *= filter_norms(weight) / filter_norms(draw)
            parts.append(draw.flatten())
        directions.append(torch.cat(parts))
    return directions[0], directions[1]


def filter_norms(weight: Tensor) -> Tensor:
    """The 2-norm of each filter, shaped to broadcast against ``weight``."""
    return weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))


class ImagePlane:
    """Mean loss and accuracy at ``clamp(x + epsilon (u s + v r), 0, 1)``; a :data:`Surface`.

    s: each image's sign of its loss gradient at x; r: random signs, the same for every run on these images. Within
    ``|u| + |v| <= 1`` every image is inside its epsilon-ball. ``x`` (N, C, H, W) in [0, 1], ``y`` int64 (N,),
    ``epsilon`` in pixel units; ``model`` in eval mode.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sat_core import ImagePlane
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
        >>> x, y = torch.rand(20, 1, 8, 8), torch.randint(10, (20,))
        >>> surface = ImagePlane(model, x, y, epsilon=0.1, seed=0, batch_size=20)
        >>> surface(1.0, 0.0)[0] > surface(0.0, 0.0)[0]  # along the gradient's sign the loss rises
        True
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, epsilon: float, seed: int, batch_size: int) -> None:
        check_images(x)
        if not 0 < epsilon <= 1:
            raise ValueError(f"epsilon {epsilon} is not in (0, 1]: it is in pixel units, such as 8 / 255")
        self.model, self.y, self.x, self.size = model, y, x, batch_size
        generator = torch.Generator().manual_seed(seed)
        self.second = epsilon * torch.randn(x.shape, generator=generator).sign().to(x.device)
        with frozen(model), torch.enable_grad():
            self.first = epsilon * torch.cat([self._gradient(*part) for part in self._parts(x, y)]).sign()

    def _parts(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        return zip(*(tensor.split(self.size) for tensor in tensors), strict=True)

    def _gradient(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(self.model(x), y, reduction="sum"), x)[0]

    def __call__(self, u: float, v: float) -> tuple[float, float]:
        moved = (self.x + u * self.first + v * self.second).clamp_(0, 1)
        objective = Objective(self.model, moved, self.y, self.size)
        return objective(objective.theta)
