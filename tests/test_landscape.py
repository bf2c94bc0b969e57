"""Landscapes: the centre is the run, the axes are what they claim, and pictures come of them."""

import copy
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from studies import TINY
from torch import Tensor, nn

from sat_core import evaluation, figures, training
from sat_core.__main__ import main
from sat_core.errors import ConfigError
from sat_core.study import Study
from sat_core.hessian.objective import Objective
from sat_core.runs.sample import sample
from sat_core.runs.files import write_json
from sat_core.report.kinds import FIGURES
from sat_core.hessian.lanczos import top_eigenpairs
from sat_core.hessian.planes import ImagePlane, grid, random_directions, weight_plane
from sat_core.models.small import small

ADDRESS = "digits/cnn/madry/eps0.3/seed0"


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
    nets = [nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5)) for _ in range(2)]
    x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    objectives = [Objective(net, x, y, 2) for net in nets]
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


@pytest.fixture
def study(write_study):
    content = copy.deepcopy(TINY)
    content["tables"]["digits"] |= {"curvature": ["madry", "psat"], "landscapes": ["madry", "psat"]}
    settings = {"curvature": {"images": 40, "batch_size": 32}, "landscape": {"points": 5, "reattack": 3}}
    content["overrides"].append({"set": settings})
    return Study(write_study(content))


def test_the_centre_is_the_runs_own_loss_and_figures_come_of_what_there_is(study):
    run = study.run(ADDRESS)
    training.train(run)
    assert main(["curvature", "--study", str(study.path), "--run", ADDRESS]) == 0
    assert main(["landscape", "--study", str(study.path), "--run", ADDRESS]) == 0
    selected = figures.read_json(run.folder / "curvature.json")["selected"]
    with np.load(run.folder / "landscape.npz") as file:
        content = dict(file)
    assert content["lambda_max"] == pytest.approx(selected["lambda_max"], rel=1e-3)
    for plane, points in (("random", 5), ("hessian", 5), ("reattacked", 3)):
        loss, accuracy = content[f"{plane}_loss"], content[f"{plane}_accuracy"]
        assert loss.shape == (points, points)
        assert loss[points // 2, points // 2] == pytest.approx(selected["loss"], rel=1e-6)
        assert accuracy[points // 2, points // 2] == selected["adversarial"]
    device = torch.device("cpu")
    x, y = sample(run, device)
    logits = evaluation.trained_model(run, device)[0](x)
    assert content["input_loss"][2, 2] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)
    assert content["input_accuracy"][2, 2] == selected["clean"]
    corner, attacked = content["random_loss"][0, 0], content["reattacked_loss"][0, 0]
    assert attacked > corner  # images made for those weights do more harm than the centre's
    for kind in FIGURES:
        if kind not in ("curves", "tradeoff", "examples"):
            assert figures.write_figure(study, "digits", kind).stat().st_size > 10_000
    for name, kind in (("landscape.npz", "landscape"), ("curvature.json", "curvature")):
        path = run.folder / name
        whole = path.read_bytes()
        for length in [*random.Random(0).sample(range(len(whole) - 2), 19), len(whole) - 2]:  # the last is a newline
            path.write_bytes(whole[:length])
            with pytest.raises(ConfigError, match="damaged") as told:
                figures.write_figure(study, "digits", kind)
            assert str(path) in str(told.value)
        path.write_bytes(whole)
    known = list(figures.existing(study, [run.id], "curvature.json", figures.read_json))
    record = figures.read_json(run.folder / "run.json")
    record["files"]["model.safetensors"] = "those of another training"
    write_json(run.folder / "run.json", record)
    read = {"curvature.json": figures.read_json, "landscape.npz": figures.read_arrays}
    assert known == [run.id] and not any(figures.existing(study, [run.id], *file) for file in read.items())


def test_figures_of_nothing_are_drawn_all_the_same(study):
    assert set(FIGURES) == set(figures.KINDS)
    for kind in FIGURES:
        assert figures.write_figure(study, "digits", kind).exists()
