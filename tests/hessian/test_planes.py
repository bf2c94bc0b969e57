"""Planes through a loss: the axes are what they claim."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat_core.hessian.lanczos import top_eigenpairs
from sat_core.hessian.objective import Objective
from sat_core.hessian.planes import ImagePlane, grid, random_directions, weight_plane
from sat_core.models.small import small


@dataclass
class Quadratic:
    """``L(theta) = (theta - minimum)^T H (theta - minimum) / 2``, with accuracy 0.5 everywhere."""

    matrix: Tensor
    minimum: Tensor
    theta: Tensor

    def __call__(self, theta: Tensor) -> tuple[float, float]:
        away = theta - self.minimum
        return float(away @ self.matrix @ away / 2), 0.5


def test_the_hessian_planes_axes_have_the_curvature_they_claim():
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64)).Q
    matrix = rotation @ torch.diag(torch.linspace(1, 30, 30, dtype=torch.float64)) @ rotation.T
    minimum, theta = torch.randn(2, 30, dtype=torch.float64)
    quadratic = Quadratic(matrix, minimum, theta)
    top = top_eigenpairs(matrix.mv, torch.randn(30, dtype=torch.float64), steps=30, tolerance=1e-9, count=2)
    plane = grid(weight_plane(quadratic, *top.vectors), half_width=0.5, points=5)
    loss, width = plane["loss"], plane["axis"][1] - plane["axis"][0]
    assert plane["axis"].tolist() == [-0.5, -0.25, 0, 0.25, 0.5]
    assert loss[2, 2] == pytest.approx(quadratic(theta)[0])
    assert np.diff(loss, 2, axis=0) / width**2 == pytest.approx(np.full((3, 5), 30.0))
    assert np.diff(loss, 2, axis=1) / width**2 == pytest.approx(np.full((5, 3), 29.0))
    slope = top.vectors[0] @ matrix @ (theta - minimum)  # tells the first axis from the second, and its sign
    assert (loss[3, 2] - loss[1, 2]) / (2 * width) == pytest.approx(float(slope))
    mixed = np.diff(np.diff(loss, axis=0), axis=1)
    assert mixed == pytest.approx(np.zeros((4, 4)), abs=1e-9)


def test_random_directions_have_the_norm_of_every_filter_and_spare_one_dimensional_parameters():
    torch.manual_seed(0)
    nets = [
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5)).eval() for _ in range(2)
    ]
    x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    objectives = [Objective(net.eval(), x, y, 2) for net in nets]
    both = [[o.weights(d) for d in random_directions(o, seed=3)] for o in objectives]
    for net, directions in zip(nets, both, strict=True):
        for direction in directions:
            for name, weight in net.named_parameters():
                if weight.dim() == 1:
                    assert not direction[name].any()
                else:
                    for filter, moved in zip(weight, direction[name], strict=True):
                        assert moved.norm() == pytest.approx(filter.norm().item(), rel=1e-5)
    for name in ("0.weight", "3.weight"):
        one, other = (directions[0][name].flatten(1) for directions in both)
        assert F.cosine_similarity(one, other).tolist() == pytest.approx([1] * len(one), abs=1e-5)  # the same draw
        assert F.cosine_similarity(one, both[0][1][name].flatten(1)).abs().max() < 0.99  # but two of them


def test_the_input_plane_is_the_gradients_sign_in_epsilons():
    torch.manual_seed(0)
    model = small((1, 8, 8), 10).eval().requires_grad_(False)
    x, y = torch.rand(9, 1, 8, 8), torch.randint(0, 10, (9,))
    plane = ImagePlane(model, x, y, epsilon=0.1, seed=0, batch_size=4)
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)[0]
    for u in (-1.0, 0.0, 0.5, 1.0):
        expected = F.cross_entropy(model((x + 0.1 * u * gradient.sign()).clamp(0, 1)), y)
        assert plane(u, 0.0)[0] == pytest.approx(expected.item(), rel=1e-5)
    assert plane.second.abs().unique().tolist() == pytest.approx([0.1])
    assert torch.equal(plane.second, ImagePlane(model.apply(nn.Module.eval), x, 9 - y, 0.1, 0, 9).second)
