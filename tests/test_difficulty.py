"""The curriculum, and psi_P's range."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, hessian

from sat_core import models
from sat_core.difficulty import (
    Curriculum,
    capture,
    classifier_curvature,
    gauss_newton_curvature,
    parametric_layers,
    probability_gap,
    top_softmax_eigenvalue,
)
from sat_core.hessian import samples
from sat_core.runs.audit import difficulties


def test_steps_rise_by_equal_parts_at_their_epochs():
    mnist = Curriculum(kind="steps", epochs=[30, 45, 60])
    assert [mnist(e) for e in (0, 29, 30, 44, 45, 60, 69)] == pytest.approx([0, 0, 1 / 3, 1 / 3, 2 / 3, 1, 1])


def test_linear_rises_between_its_epochs():
    cifar = Curriculum(kind="linear", epochs=[30, 70], stop=0.4)
    assert [cifar(e) for e in (0, 29, 30, 50, 68, 69, 99)] == pytest.approx([0, 0, 0.01, 0.21, 0.39, 0.4, 0.4])


@pytest.mark.parametrize(
    ("curriculum", "message"),
    [
        (Curriculum(kind="steps", epochs=[10]), "beyond the last epoch"),
        (Curriculum(kind="steps", epochs=[3, 3]), "must increase"),
        (Curriculum(kind="linear", epochs=[3]), "two epochs"),
        (Curriculum(kind="steps", epochs=[3], stop=1.5), "curriculum.stop 1.5 is outside the range"),
        (Curriculum(kind="steps", epochs=[3], start=-0.5), "curriculum.start -0.5 is outside the range"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(curriculum, message):
    with pytest.raises(ValueError, match=message):
        curriculum.check(10, 0.0, 1.0)


@given(st.integers(0, 10**6), st.floats(0.1, 1e4))
def test_psi_never_exceeds_one_so_lambda_one_never_stops(seed, scale):
    torch.manual_seed(seed)
    psi = probability_gap(scale * torch.randn(50, 10), torch.randint(10, (50,)))
    assert psi.min() >= -1 and psi.max() <= 1


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_top_softmax_eigenvalue_is_that_of_the_dense_matrix(classes, scale):
    torch.manual_seed(classes)
    logits = scale * torch.randn(200, classes)
    p = logits.double().softmax(1)
    exact = torch.linalg.eigvalsh(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])[:, -1]
    ours = top_softmax_eigenvalue(logits).double()
    assert (ours <= exact * (1 + 1e-5) + 1e-7).all()  # a Rayleigh quotient is never above
    assert ((exact - ours) / exact.clamp_min(1e-3)).max() < 0.02
    assert torch.allclose(top_softmax_eigenvalue(logits, 500).double(), exact, rtol=1e-3, atol=1e-6)


def small_network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    model[1].running_mean.uniform_(-0.3, 0.3)
    model[1].running_var.uniform_(0.5, 2)
    model.eval().requires_grad_(False)
    return model, torch.rand(6, 1, 4, 4, dtype=torch.float64), torch.randint(3, (6,))


def convolutional_network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A convolution of many pixels and few channels, and one of few and many: the norms are computed differently."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 32, 3, stride=2, bias=False), nn.ReLU()]
    model = models.Normalized(nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10)), [0.5] * 3, [0.3] * 3)
    return model.eval().requires_grad_(False), torch.rand(4, 3, 8, 8), torch.arange(4)


def dense_hessian(model, x, y, names):
    """The loss Hessian of one sample in the named parameters, flat."""
    whole = dict(model.named_parameters())
    sizes = [whole[n].numel() for n in names]

    def loss(flat):
        parts = {n: f.view_as(whole[n]) for n, f in zip(names, flat.split(sizes), strict=True)}
        return F.cross_entropy(functional_call(model, {**whole, **parts}, (x[None],)), y[None])

    return hessian(loss)(torch.cat([whole[n].flatten() for n in names]))


def test_classifier_curvature_is_its_block_of_the_hessian_and_a_lower_bound_of_the_whole():
    model, x, y = small_network()
    names = [name for name, _ in model.named_parameters()]
    with capture(model[-1]) as seen:
        logits = model(x)
    p = logits.softmax(1)
    top = torch.linalg.eigvalsh(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])[:, -1]
    ours = classifier_curvature(logits, seen.inputs[model[-1]]).double()
    for i in range(len(x)):
        block = torch.linalg.eigvalsh(dense_hessian(model, x[i], y[i], names[-2:]))[-1]
        whole = torch.linalg.eigvalsh(dense_hessian(model, x[i], y[i], names))[-1]
        assert block.item() == pytest.approx((top[i] * (seen.inputs[model[-1]][i].square().sum() + 1)).item(), rel=1e-9)
        assert ours[i].item() == pytest.approx(block.item(), rel=0.01)
        assert ours[i] <= whole * (1 + 1e-5)


@pytest.mark.parametrize("network", [small_network, convolutional_network])
def test_gradient_norms_are_those_of_each_sample_alone(network):
    model, x, y = network()
    model, x = model.double(), x.double()
    with capture(*parametric_layers(model), deltas=True) as seen:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    ours = seen.gradient_norm_squared()
    model.requires_grad_(True)
    for i in range(len(x)):
        gradients = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()))
        assert ours[i].item() == pytest.approx(sum(g.square().sum().item() for g in gradients), rel=1e-9)


def test_gradient_norms_in_bfloat16_are_those_of_float32():
    (model, x, y), norms = convolutional_network(), {}
    for precision in ("float32", "bfloat16"):
        models.compute_in(precision, model)
        with capture(*parametric_layers(model), deltas=True) as seen:
            torch.autograd.grad(F.cross_entropy(model(x.requires_grad_()), y, reduction="sum"), x)
        norms[precision] = seen.gradient_norm_squared()
        assert norms[precision].dtype == torch.float32
    assert torch.allclose(norms["bfloat16"], norms["float32"], rtol=0.05)
    assert not torch.equal(norms["bfloat16"], norms["float32"])


def test_gauss_newton_curvature_is_a_rayleigh_quotient_of_its_matrix_for_two_classes():
    torch.manual_seed(0)
    logits, y, norm = torch.randn(20, 2), torch.randint(2, (20,)), torch.rand(20)
    p = logits.softmax(1)
    r = p - F.one_hot(y, 2)
    ours = gauss_newton_curvature(logits, y, norm)
    # S = 2 p1 p2 uu^T with u = (1, -1)/sqrt 2, and r is parallel to u: |J^T u|^2 = |g|^2 / |r|^2
    assert torch.allclose(ours, 2 * p[:, 0] * p[:, 1] * norm / r.square().sum(1), rtol=1e-3)


@pytest.mark.parametrize("at_once", [6, 2])
def test_exact_curvature_is_the_dense_hessians_top_eigenvalue(monkeypatch, at_once):
    model, x, y = small_network()
    names, parameters = zip(*model.named_parameters(), strict=True)
    monkeypatch.setattr(samples, "CHUNK_BYTES", at_once * 4 * sum(p.numel() for p in parameters) * 51)
    ours = samples.exact_curvature(model, x, y, steps=51)
    dense = torch.stack([torch.linalg.eigvalsh(dense_hessian(model, x[i], y[i], names))[-1] for i in range(len(x))])
    assert torch.allclose(ours, dense, rtol=1e-8)


def test_an_audits_difficulties_are_those_that_defenses_see():
    model, x, y = small_network()
    with capture(model[-1]) as seen:
        logits = model(x)
    found = difficulties(model, x, y)
    assert set(found) == {"classifier", "gauss_newton", "probability_gap"}
    assert torch.allclose(found["classifier"], classifier_curvature(logits, seen.inputs[model[-1]]))
    assert torch.equal(found["probability_gap"], probability_gap(logits, y))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.1, 30))
def test_classifier_curvature_is_finite_and_never_negative(seed, scale):
    torch.manual_seed(seed)
    psi = classifier_curvature(scale * torch.randn(20, 10), torch.randn(20, 4))
    assert torch.isfinite(psi).all() and (psi >= -1e-6).all()
