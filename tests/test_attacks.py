"""What any PGD must keep, whatever the images, the radius and the rule."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sat_core import attacks
from sat_core.attacks import PGD, cross_entropy, normal_start, uniform_start, while_correct
from sat_core.difficulty import probability_gap


def batch_and_model(seed: int, n: int = 6, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, nn.Module]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, classes))
    return torch.rand(n, 1, 5, 5), torch.randint(classes, (n,)), model


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    epsilon=st.floats(1e-3, 1.0),
    ratio=st.floats(0.01, 3.0),
    steps=st.integers(1, 6),
    limit=st.floats(-1.0, 1.0),
)
def test_pgd_stays_in_the_ball_and_in_the_box(seed, epsilon, ratio, steps, limit):
    x, y, model = batch_and_model(seed)
    attack = PGD(epsilon, ratio * epsilon, steps)
    for rule in (None, while_correct(y), lambda it: probability_gap(it.logits, y[it.rows]) <= limit):
        result = attack(model, x, cross_entropy(y), start=uniform_start(x, epsilon), keep_going=rule)
        assert result.x.shape == x.shape and not result.x.requires_grad
        assert (result.x - x).abs().max() <= epsilon + 1e-6
        assert result.x.min() >= 0 and result.x.max() <= 1
        assert ((result.steps >= 0) & (result.steps <= steps)).all()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), epsilon=st.floats(1e-3, 1.0), steps=st.integers(1, 6))
def test_pgd_never_lowers_a_convex_loss_below_its_start(seed, epsilon, steps):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 2))  # two classes, linear: the loss is monotone in each pixel
    x, y = torch.rand(6, 1, 5, 5), torch.randint(2, (6,))
    start = uniform_start(x, epsilon)
    result = PGD(epsilon, epsilon / 3, steps)(model, x, cross_entropy(y), start=start)
    before, after = (F.cross_entropy(model(z), y, reduction="none") for z in (start, result.x))
    assert (after >= before - 1e-6).all()


def test_pgd_reaches_the_optimum_of_a_linear_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 2))
    x, y, epsilon = torch.rand(8, 1, 5, 5), torch.randint(2, (8,)), 0.1
    result = PGD(epsilon, epsilon / 2, 8)(model, x, cross_entropy(y), start=uniform_start(x, epsilon))
    weight = (model[1].weight[1 - y] - model[1].weight[y]).view_as(x)
    assert torch.allclose(result.x, (x + epsilon * weight.sign()).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_pgd_leaves_the_model_as_it_was(training):
    x, y, model = batch_and_model(1)
    model.train(training)
    model[1].eval()  # a mode of its own must come back too
    model[0].weight.requires_grad_(False)
    F.cross_entropy(model(x), y).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    needs = [p.requires_grad for p in model.parameters()]
    PGD(0.1, 0.05, 3)(model, x, cross_entropy(y), start=uniform_start(x, 0.1))
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == needs
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert p.grad is None if gradient is None else torch.equal(p.grad, gradient)


def test_a_failing_attack_restores_the_model():
    x, _y, model = batch_and_model(2)
    model.train()
    with pytest.raises(ZeroDivisionError):
        PGD(0.1, 0.05, 3)(model, x, lambda logits, rows: 1 / 0, start=x)
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_a_stopped_sample_stays_where_it_stopped():
    x, y, model = batch_and_model(3, n=32)
    start = uniform_start(x, 0.2)
    seen: list[torch.Tensor] = []

    def rule(iterate):
        move = probability_gap(iterate.logits, y[iterate.rows]) <= 0.0
        seen.append(iterate.rows.clone())
        return move

    result = PGD(0.2, 0.05, 5)(model, x, cross_entropy(y), start=start, keep_going=rule)
    assert 0 < int((result.steps < 5).sum()) < 32  # the case is not empty
    for earlier, later in itertools.pairwise(seen):
        assert set(later.tolist()) <= set(earlier.tolist())
    for i in range(32):  # one at a time, by hand
        z = start[i : i + 1].clone()
        model.eval()
        for _ in range(5):
            z.requires_grad_()
            logits = model(z)
            if probability_gap(logits, y[i : i + 1]) > 0:
                break
            (g,) = torch.autograd.grad(F.cross_entropy(logits, y[i : i + 1]), z)
            z = (z.detach() + 0.05 * g.sign()).clamp(x[i] - 0.2, x[i] + 0.2).clamp(0, 1)
        assert torch.allclose(result.x[i], z[0], atol=1e-5)


@pytest.mark.parametrize("steps", [0, 3])
def test_who_stops_before_the_first_step_is_projected_too(steps):
    x, y, model = batch_and_model(4)
    attack, far = PGD(0.1, 0.05, steps), x + torch.randn_like(x)
    found = attack(model, x, cross_entropy(y), start=far, keep_going=lambda iterate: iterate.rows < 0)
    assert torch.equal(found.x, far.clamp(x - 0.1, x + 0.1).clamp(0, 1)) and not found.steps.any()


def test_a_batch_that_shrinks_by_several_samples_at_once_gives_the_same(monkeypatch):
    """As on a GPU; those that wait to leave must not move."""
    x, y, model = batch_and_model(3, n=32)
    start, step_size = uniform_start(x, 0.2), torch.rand(32, 1, 1, 1) * 0.1
    found, sizes = [], []

    def rule(iterate):
        sizes[-1].append(len(iterate.rows))
        return iterate.rows % 7 >= iterate.step

    for parts in (32, 8):
        monkeypatch.setattr(attacks, "PARTS", {"cpu": parts})
        sizes.append([])
        attack = PGD(0.2, 0.05, 6)
        rest = {"start": start, "keep_going": rule, "step_size": step_size}
        found.append(attack(model, x, cross_entropy(y), **rest))
    assert torch.allclose(found[0].x, found[1].x, atol=1e-6) and torch.equal(found[0].steps, found[1].steps)
    assert sizes[1] == [-(-size // 4) * 4 for size in sizes[0]] and len(set(sizes[1])) > 2


def test_noise_is_as_large_as_it_says():
    """TRADES' start is of 0.001, in its authors' code."""
    torch.manual_seed(0)
    x = torch.full((64, 1, 8, 8), 0.5)
    assert (normal_start(x) - x).std().item() == pytest.approx(0.001, rel=0.05)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    nn.init.zeros_(flat[1].weight)  # nothing but the noise moves
    found = PGD(0.4, 0.1, 1)(flat, x, cross_entropy(torch.zeros(64, dtype=torch.int64)), start=x, noise=0.01)
    assert (found.x - x).std().item() == pytest.approx(0.01, rel=0.05)


def test_probability_gap_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6]]))
    y = torch.tensor([0, 2, 2])
    assert torch.allclose(probability_gap(logits, y), torch.tensor([-0.2, 0.5, -0.4]), atol=1e-6)
