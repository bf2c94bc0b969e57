"""Traces of the Hessian against dense matrices, and what a change of scale does to them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian

from sat_core import Objective, relative_flatness, trace
from sat_core.hessian import gaussians


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)).double().eval()
    model.requires_grad_(False)
    return model, torch.rand(11, 1, 5, 5, dtype=torch.float64), torch.randint(0, 4, (11,))


def blocks(model, x, y):
    """The dense Hessian of each weight matrix: (rows, columns, rows, columns)."""
    parameters = dict(model.named_parameters())
    for name, weight in parameters.items():
        if weight.ndim > 1:
            rows = weight.detach().flatten(1)

            def loss(rows, name=name, weight=weight):
                return F.cross_entropy(functional_call(model, {name: rows.view_as(weight)}, x), y)

            yield rows, hessian(loss)(rows)


def test_relative_flatness_is_the_sum_over_pairs_of_neurons(problem):
    expected = sum(float(torch.einsum("st,sktk->", w @ w.T, h)) for w, h in blocks(*problem))
    mean, error = relative_flatness(Objective(*problem), probes=400)
    assert 0 < error < 0.3 * expected
    assert abs(mean - expected) < 4 * error


def test_the_trace_is_that_of_the_dense_hessian(problem):
    objective = Objective(*problem)
    model, x, y = problem
    dense = hessian(lambda theta: F.cross_entropy(functional_call(model, objective.weights(theta), x), y))
    expected = float(dense(objective.theta).trace())
    mean, error = trace(objective, probes=400)
    assert 0 < error < 0.3 * expected
    assert abs(mean - expected) < 4 * error


def test_the_error_of_two_probes_is_half_their_difference(problem):
    objective = Objective(*problem)
    a, b = (float(v @ objective.product(v)) for v in gaussians(2, objective.theta, 0))
    assert trace(objective, probes=2) == pytest.approx(((a + b) / 2, abs(a - b) / 2))


def test_one_probe_has_no_error_and_is_refused(problem):
    with pytest.raises(ValueError, match="1 probes: two or more are needed"):
        trace(Objective(*problem), probes=1)


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_scaling_a_layer_up_and_the_next_down_changes_the_trace_alone(problem, scale):
    model, x, y = problem
    before = Objective(model, x, y)
    flatness, whole = relative_flatness(before)[0], trace(before)[0]
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[0].bias.mul_(scale)
        model[3].weight.div_(scale)
    after = Objective(model, x, y)
    assert relative_flatness(after)[0] == pytest.approx(flatness, rel=1e-9)
    assert trace(after)[0] != pytest.approx(whole, rel=0.5)
