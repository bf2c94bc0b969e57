"""The judge, against what can be worked out by hand."""

import pyautoattack
import pytest
import torch
from torch import nn

from sat_core.judge import ATTACKS, attack_standing, autoattack, square_lowers
from sat_core.runs.network import predict


@pytest.mark.parametrize("classes", [4, 7])
def test_autoattack_targets_every_class_where_there_are_few(classes):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes)).requires_grad_(False)
    x = torch.rand(30, 1, 8, 8)
    y, broken_by = predict(model, x), [""] * 30
    for attack in ATTACKS:
        attack_standing(
            model, x, y, attack, epsilon=0.1, seed=0, classes=classes, broken_by=broken_by, batch_size=len(x)
        )
    margins = (model(x).gather(1, y[:, None]) - model(x)) - 0.1 * (
        model[1].weight[y][:, None] - model[1].weight
    ).abs().sum(dim=2)
    margins.scatter_(1, y[:, None], float("inf"))
    breakable = margins.amin(dim=1) < 0  # of a linear network in the ball, images near 0 or 1 apart
    assert not any(by and not can for by, can in zip(broken_by, breakable.tolist(), strict=True))
    assert 0 < sum(by != "" for by in broken_by) < 30


class Noisy(nn.Sequential):
    """Another answer each time."""

    def forward(self, x):
        logits = super().forward(x)
        return logits + 0.01 * torch.randn_like(logits)


def test_what_autoattack_warns_of_is_in_the_verdict():
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x = torch.rand(2, 1, 8, 8)
    y = linear(x).argmax(dim=1)
    verdict = autoattack(linear, x, y, epsilon=0.01)
    assert verdict.robust == 1 and verdict.flags == set()
    for network, flag in ((nn.Sequential(linear, nn.Softmax(dim=1)), "probabilities"), (Noisy(*linear), "randomized")):
        assert flag in autoattack(network, x, y, epsilon=0.3).flags


class Steps(nn.Module):
    """Flat almost everywhere: no gradient leads anywhere."""

    def forward(self, x):
        return (8 * x).round() / 8


def test_a_verdict_says_where_square_lowers_the_accuracy_though_it_sees_no_gradient():
    assert not square_lowers(["square"] + [""] * 499) and square_lowers(["square"] * 2 + [""] * 498)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), Steps(), nn.Linear(64, 4)), torch.rand(16, 1, 8, 8)
    verdict = autoattack(model, x, model(x).argmax(dim=1), epsilon=0.1)
    assert "square" in verdict.broken_by and {"square", "zero gradients"} <= verdict.flags


@pytest.mark.parametrize(("classes", "batch_size", "seed"), [(12, 64, 1), (5, 5, 2)])
def test_the_verdict_is_pyautoattacks_own(classes, batch_size, seed):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, classes)]
    model, x = nn.Sequential(*layers).eval(), torch.rand(12, 1, 6, 6)
    y = model(x).argmax(dim=1)
    y[:3] = (y[:3] + 1) % classes
    official = pyautoattack.AutoAttack(model, eps=0.04, norm="Linf", seed=seed)
    official.apgd_targeted.n_target_classes = official.fab.n_target_classes = min(9, classes - 1)
    _, answers = official.run_standard_evaluation(x, y, batch_size=batch_size)
    verdict = autoattack(model, x, y, epsilon=0.04, seed=seed, batch_size=batch_size)
    assert verdict.broken_by[:3] == ["clean"] * 3 and 0 < verdict.robust < 0.85
    assert [not by for by in verdict.broken_by] == (answers == y).tolist()
