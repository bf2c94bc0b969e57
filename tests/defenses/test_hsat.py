"""H-SAT against a slow restatement in float64, and what must hold for any lambda."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from sat_core import defenses
from sat_core.attacks import PGD, Perturbation, uniform_start
from sat_core.errors import ConfigError
from sat_core.runs.check import check
from sat_core.study import Study

LIMITS = [i / 40 for i in range(40)]
METRICS = pytest.mark.parametrize("metric", ["classifier", "gauss_newton"])


def make_batch(n: int = 48, steps: int = 6, epsilon: float = 0.3) -> defenses.Batch:
    """Random 4x4 images in 5 classes, in float64, before a small network that is right about most of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)).double()
    x = torch.rand(n, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        model[3].weight.mul_(12)
        y = torch.where(torch.rand(n) < 0.85, model(x).argmax(dim=1), torch.randint(5, (n,)))
    return defenses.Batch(model, x, y, torch.arange(n), 5, 3, PGD(epsilon, epsilon / 6, steps))


def attacked(batch: defenses.Batch, limit: float, metric: str = "classifier", seed: int = 1) -> Perturbation:
    """What H-SAT makes of a batch of epoch 3 in which lambda has become ``limit``."""
    curriculum = {"kind": "steps", "epochs": [3], "start": 1, "stop": limit}
    torch.manual_seed(seed)
    return defenses.build("hsat", {"metric": metric, "curriculum": curriculum}, 10).perturb(batch)


def asked(batch: defenses.Batch) -> Tensor:
    """psi_H of images as they are, (N,), rounded up to a multiple of 1/400: the least lambda that lets them step."""
    alone = dataclasses.replace(batch, attack=PGD(1e-9, 1e-9, 1))
    refused = sum((attacked(alone, i / 400).steps == 0).double() for i in range(400))
    return torch.as_tensor(refused) / 400


def slow_psi(model: nn.Module, x: Tensor, y: Tensor, metric: str, unit: float | None) -> tuple[Tensor, float]:
    """psi_H sample by sample, by dense eigenvalues and a gradient each; with half the mean k, or the one given."""
    tops, gains, right = [], [], []
    for i in range(len(x)):
        h = model[:3](x[i : i + 1])
        z = model[3](h)
        p = z.softmax(dim=1)[0].detach()
        tops.append(torch.linalg.eigvalsh(torch.diag(p) - p[:, None] * p[None])[-1].item())
        if metric == "classifier":
            gains.append(h.square().sum().item() + 1)
        else:
            parts = torch.autograd.grad(F.cross_entropy(z, y[i : i + 1]), list(model.parameters()))
            r = p - F.one_hot(y[i], len(p))
            gains.append(sum(g.square().sum().item() for g in parts) / r.square().sum().item())
        right.append(int(z.argmax()) == int(y[i]))
    unit = sum(gains) / len(gains) / 2 if unit is None else unit
    us = [min(1.0, top * gain / unit) for top, gain in zip(tops, gains, strict=True)]
    return torch.tensor([u / 2 if good else 1 - u / 2 for u, good in zip(us, right, strict=True)]), unit


def slow_path(batch: defenses.Batch, metric: str) -> tuple[Tensor, Tensor]:
    """Every iterate of Madry's attack, (K + 1, N, C, H, W), and psi_H of each that is asked about, (K, N)."""
    torch.manual_seed(1)
    iterates, psis, unit = [uniform_start(batch.x, batch.attack.epsilon)], [], None
    for _ in range(batch.attack.steps):
        z = iterates[-1].requires_grad_()
        psi, unit = slow_psi(batch.model, z, batch.y, metric, unit)
        (g,) = torch.autograd.grad(F.cross_entropy(batch.model(z), batch.y, reduction="sum"), z)
        low, high = (batch.x - batch.attack.epsilon).clamp(min=0), (batch.x + batch.attack.epsilon).clamp(max=1)
        iterates.append((z.detach() + batch.attack.step_size * g.sign()).clamp(low, high))
        psis.append(psi)
    return torch.stack([z.detach() for z in iterates]), torch.stack(psis)


def first_above(psis: Tensor, limit: float) -> Tensor:
    """The first iterate whose psi exceeds the limit, (N,); K where none does."""
    above = torch.cat([psis > limit, torch.ones(1, psis.shape[1], dtype=torch.bool)])
    return above.int().argmax(dim=0)


@METRICS
def test_samples_stop_where_psi_restated_in_float64_exceeds_lambda(metric):
    batch = make_batch()
    iterates, psis = slow_path(batch, metric)
    right = psis < 0.5
    assert (right[0] & ~right[-1]).sum() > 5  # some flip on the way
    assert (psis[right] > 0).any() and (psis[~right] < 1).any()
    assert ((psis >= 0) & (psis <= 1)).all()
    on_the_way = 0
    for limit in LIMITS:
        found = attacked(batch, limit, metric)
        # lambda_max(S) is of ten power iterations: below 1 % too small
        assert (first_above(psis, limit - 0.005) <= found.steps).all()
        assert (found.steps <= first_above(psis, limit + 0.005)).all()
        expected = iterates[found.steps, torch.arange(len(batch.x))]
        assert torch.allclose(found.x, expected, rtol=0, atol=1e-12)  # it keeps the iterate found above lambda
        on_the_way += int(((found.steps > 0) & (found.steps < batch.attack.steps)).sum())
    assert on_the_way > 100


def test_samples_that_float32_cannot_tell_from_certain_leave_the_unit_to_the_others():
    """Of one layer both metrics are exact; k is the same for all here."""
    torch.manual_seed(0)
    pixels = torch.rand(16, dtype=torch.float64)
    x = torch.stack([pixels[torch.randperm(16)] for _ in range(48)]).view(48, 1, 4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).double()
    with torch.no_grad():
        model[1].weight.mul_(100)
        p = model(x).softmax(dim=1)
    assert 5 < (p.amax(dim=1) > 1 - 1e-7).sum() < 43
    batch = defenses.Batch(model, x, p.argmax(dim=1), torch.arange(48), 5, 0, PGD(1e-9, 1e-9, 1))
    for limit in LIMITS[1:]:
        by_classifier, by_gradient = (attacked(batch, limit, metric).steps for metric in ("classifier", "gauss_newton"))
        assert torch.equal(by_classifier, by_gradient)


@METRICS
def test_psi_is_unfolded_where_the_prediction_flips(metric):
    """At most 1/2 where the network is right, at least 1/2 where it is wrong."""
    batch = make_batch()
    torch.manual_seed(1)
    start = uniform_start(batch.x, batch.attack.epsilon)
    wrong = batch.model(start).argmax(dim=1) != batch.y
    assert 3 < wrong.sum() < len(wrong) - 3
    steps = {limit: attacked(batch, limit, metric).steps for limit in (0.499, 0.501)}
    assert (steps[0.499][wrong] == 0).all()
    assert (steps[0.501][~wrong] > 0).all()


def tie(others: tuple[float, float]) -> defenses.Batch:
    """Images of nearly the same k on a line; logits 100 t, -100 t and those of two other classes. Class 0 is true."""
    t = torch.linspace(-0.01, 0.01, 21)
    x = torch.full((21, 1, 2, 2), 0.5, dtype=torch.float64)
    x[:, 0, 0, 0] += t
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4)).double()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[:2, 0] = torch.tensor([100.0, -100.0])
        model[1].bias.copy_(torch.tensor([-50.0, 50.0, *others]))
    return defenses.Batch(model, x, torch.zeros_like(t).long(), torch.arange(21), 4, 3, PGD(0.1, 0.1, 1))


def test_psi_is_continuous_where_the_two_likeliest_classes_tie():
    """Where they share all of the probability; with k the same for all, u is then 1 at the tie."""
    psi = asked(tie((-50.0, -50.0)))
    assert psi.diff().abs().max() < 0.05
    assert psi[10] == pytest.approx(0.5, abs=0.02)
    assert psi[0] > 0.75 and psi[-1] < 0.25


def test_where_other_classes_share_in_the_tie_psi_rises_by_what_u_lacks():
    psi = asked(tie((-0.5, -50.0)))
    u = 2 / (2 + math.exp(-0.5))  # lambda_max(S) is there the probability of each of the two
    assert float(psi[9] - psi[11]) == pytest.approx(1 - u, abs=0.03)


@METRICS
def test_with_lambda_one_training_is_madrys_bit_for_bit(metric):
    curriculum = {"kind": "steps", "epochs": [0], "start": 1, "stop": 1}
    weights = []
    for name, options in (("madry", {}), ("hsat", {"metric": metric, "curriculum": curriculum})):
        batch, defense = make_batch(), defenses.build(name, options, 10)
        optimizer = torch.optim.SGD(batch.model.parameters(), 0.1)
        torch.manual_seed(2)
        for _ in range(5):
            found = defense.perturb(batch)
            assert (found.steps == batch.attack.steps).all()
            optimizer.zero_grad()
            defense.outer_loss(batch, found).backward()
            optimizer.step()
        weights.append(batch.model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@METRICS
def test_with_lambda_zero_only_samples_without_any_curvature_move(metric):
    batch = make_batch()
    assert (attacked(batch, 0.0, metric).steps == 0).all()
    with torch.no_grad():
        batch.model[3].weight.mul_(1e4)
    torch.manual_seed(1)
    p = batch.model(uniform_start(batch.x, batch.attack.epsilon)).softmax(dim=1).float()
    certain = p.gather(1, batch.y[:, None])[:, 0] == 1
    assert 3 < certain.sum() < len(certain)
    assert torch.equal(attacked(batch, 0.0, metric).steps > 0, certain)


def test_lambda_is_that_of_the_epoch():
    hsat, moved = defenses.build("hsat", {"curriculum": {"kind": "linear", "epochs": [0, 10]}}, 11), []
    for epoch in range(8):
        batch = dataclasses.replace(make_batch(), epoch=epoch)
        torch.manual_seed(1)
        steps = hsat.perturb(batch).steps
        assert torch.equal(steps, attacked(make_batch(), (epoch + 1) / 10).steps)
        moved.append(int(steps.sum()))
    assert moved == sorted(set(moved))


@METRICS
def test_no_state_is_kept(metric):
    batch = make_batch()
    hsat = defenses.build("hsat", {"metric": metric, "curriculum": {"kind": "steps", "epochs": [0.5]}}, 10)
    assert hsat.initial_state(100, torch.device("cpu")) == {}
    first, again = (attacked(batch, 0.4, metric) for _ in range(2))
    assert batch.state == {}
    assert torch.equal(first.x, again.x) and torch.equal(first.steps, again.steps)


def test_psi_does_not_depend_on_the_scale_of_the_features():
    """Features twice as long before half the weights: k grows fourfold without the bias' 1, and the mean with it."""
    batch = make_batch()
    with torch.no_grad():
        batch.model[0].weight.mul_(1e3)
        batch.model[0].bias.mul_(1e3)
        batch.model[3].weight.div_(1e3)
    steps = [attacked(batch, limit).steps for limit in (0.1, 0.3)]
    with torch.no_grad():
        batch.model[0].weight.mul_(2)
        batch.model[0].bias.mul_(2)
        batch.model[3].weight.div_(2)
    assert all(torch.equal(old, attacked(batch, limit).steps) for old, limit in zip(steps, (0.1, 0.3), strict=True))


def test_a_compiled_network_is_refused(tmp_path):
    table = {"dataset": "digits", "models": ["cnn"], "defenses": ["hsat"], "epsilons": [0.3]}
    content = {"tables": {"digits": table}, "overrides": [{"set": {"training": {"compile": True}}}]}
    (tmp_path / "compiled.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    study = Study(tmp_path / "compiled.yaml")
    with pytest.raises(ConfigError, match=r"hsat.*compile"):
        check(study, study.runs)
