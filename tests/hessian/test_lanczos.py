"""Hessian products and Lanczos against dense matrices and an independent library."""

import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.func import functional_call, hessian

from sat_core import models
from sat_core.hessian.lanczos import lanczos, spectral_density, top_eigenpairs
from sat_core.hessian.objective import Objective, gaussians


def symmetric(values: torch.Tensor) -> torch.Tensor:
    """A float64 matrix with these eigenvalues, in random directions."""
    rotation = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64)).Q
    return rotation @ torch.diag(values.double()) @ rotation.T


@pytest.fixture
def convolutional():
    """A float64 network with everything that matters, a BatchNorm in eval mode included, and 17 labelled images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 5)
    ).double()
    model[1].running_mean.uniform_(-0.3, 0.3)
    model[1].running_var.uniform_(0.2, 1)
    return model.eval(), torch.rand(17, 1, 7, 7, dtype=torch.float64), torch.randint(0, 5, (17,))


def test_product_and_top_eigenpairs_are_those_of_the_dense_hessian_for_unequal_batches(convolutional):
    model, x, y = convolutional
    objective = Objective(model, x, y, batch_size=7)  # 7, 7 and 3 images

    def loss(theta):
        return F.cross_entropy(functional_call(model, objective.weights(theta), x), y)

    dense = hessian(loss)(objective.theta)
    assert objective(objective.theta)[0] == pytest.approx(loss(objective.theta).item(), rel=1e-12)
    vector, start = gaussians(2, objective.theta, seed=0)
    torch.testing.assert_close(objective.product(vector), dense @ vector, rtol=1e-10, atol=1e-12)
    expected, vectors = torch.linalg.eigh(dense)
    found = top_eigenpairs(objective.product, start, steps=40, tolerance=1e-7, count=2)
    assert found.values == pytest.approx(expected.flip(0)[:2].tolist(), rel=1e-5)
    overlap = (found.vectors @ vectors.flip(1)[:, :2]).abs()
    torch.testing.assert_close(overlap, torch.eye(2, dtype=torch.float64), atol=1e-5, rtol=0)
    assert max(found.residuals) < 1e-6 * expected.abs().max()


def test_top_eigenvalue_agrees_with_curvlinops_on_a_real_network_and_unequal_batches():
    from curvlinops import HessianLinearOperator

    torch.manual_seed(0)
    model = models.build("cnn", (1, 8, 8), 10, mean=[0.0], std=[1.0]).eval()
    x, y = torch.rand(50, 1, 8, 8), torch.randint(0, 10, (50,))
    objective = Objective(model, x, y, batch_size=32)
    found = top_eigenpairs(objective.product, gaussians(1, objective.theta, 0)[0], steps=60, tolerance=1e-5)
    parameters, loss = list(model.parameters()), nn.CrossEntropyLoss()
    operator = HessianLinearOperator(model, loss, parameters, objective.batches, check_deterministic=False)
    oracle = eigsh(operator.to_scipy(), k=1, which="LA", tol=1e-7, return_eigenvectors=False)
    assert found.values[0] == pytest.approx(oracle[0], rel=1e-5)


def test_residuals_are_true_and_tell_how_far_an_unfinished_value_may_be_off():
    torch.manual_seed(0)
    matrix = symmetric(torch.cat([torch.linspace(-1, 3, 198), torch.tensor([3.4, 3.5])]))
    start = torch.randn(200, dtype=torch.float64)
    rough = top_eigenpairs(matrix.mv, start, steps=8, tolerance=1e-12)
    (vector,) = rough.vectors
    assert rough.steps == 8
    assert rough.residuals[0] == pytest.approx((matrix @ vector - rough.values[0] * vector).norm().item())
    assert rough.residuals[0] > 1e-3  # unfinished indeed
    assert (torch.linalg.eigvalsh(matrix) - rough.values[0]).abs().min() <= rough.residuals[0]
    fine = top_eigenpairs(matrix.mv, start, steps=100, tolerance=1e-9)
    assert fine.steps < 100 and fine.values[0] == pytest.approx(3.5, rel=1e-9)


def test_lanczos_has_no_ghosts_and_stops_where_there_is_no_more_to_find():
    torch.manual_seed(0)
    start = torch.randn(60, dtype=torch.float64)
    three = symmetric(torch.tensor([5.0, 5.0, 2.0] + [0.0] * 57))  # three different eigenvalues, one of them double
    assert lanczos(three.mv, start, steps=40).values == pytest.approx([0, 2, 5], abs=1e-8)
    flat = top_eigenpairs(torch.zeros_like, start, steps=40, tolerance=1e-3, count=2)
    assert (flat.values, flat.residuals, flat.steps) == ([0.0], [0.0], 1)
    outlier = [*np.linspace(0, 1, 59), 100.0]  # is found at once; lanczos without orthogonalisation finds it again
    krylov = lanczos(symmetric(torch.tensor(outlier)).mv, start, steps=60)
    assert krylov.values == pytest.approx(outlier, abs=1e-8)


def test_the_density_has_the_moments_of_the_hessian():
    torch.manual_seed(0)
    matrix = symmetric(torch.linspace(-1, 2, 50))
    starts = [torch.randn(50, dtype=torch.float64) for _ in range(3)]
    nodes, weights = map(np.array, spectral_density(matrix.mv, starts, steps=4))
    for power in range(8):  # exact up to degree 2 * 4 - 1
        image = torch.linalg.matrix_power(matrix, power)
        expected = np.mean([float(v @ image @ v / (v @ v)) for v in starts])
        assert weights @ nodes**power == pytest.approx(expected, abs=1e-9)


def test_the_spectrum_holds_one_basis_at_a_time(monkeypatch):
    """A basis of WRN-34-10 is 7 GB at 40 steps."""
    bases = []

    def watched(*given):
        assert all(basis() is None for basis in bases)
        krylov = lanczos(*given)
        bases.append(weakref.ref(krylov.basis))
        return krylov

    monkeypatch.setattr("sat_core.hessian.lanczos.lanczos", watched)
    matrix = symmetric(torch.arange(30.0))
    spectral_density(lambda v: matrix @ v, list(torch.randn(3, 30, dtype=torch.float64)), 7)
    assert len(bases) == 3
