"""Adversarial weight perturbation: how far the weights go, from which epoch on, and that they come back."""

import copy

import torch
import torch.nn.functional as F
from helpers import MADRY, run_epoch, tiny_with
from torch import nn

from sat_core import adversarial_weights
from sat_core.runs.trainer import Trainer
from sat_core.study import Study


def test_each_layer_moves_up_the_loss_by_gamma_of_its_norm_and_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)).double()
    x, y = torch.rand(6, 1, 4, 4, dtype=torch.float64), torch.randint(4, (6,))

    def loss():
        return F.cross_entropy(model(x), y)

    gradients = torch.autograd.grad(loss(), list(model.parameters()))
    before = copy.deepcopy(model.state_dict())
    with adversarial_weights(model, loss, 0.1):
        for (name, moved), g in zip(model.named_parameters(), gradients, strict=True):
            w = before[name]
            assert torch.allclose(moved, w + 0.1 * w.norm() * g / g.norm() if w.dim() > 1 else w, rtol=1e-12)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_it_begins_after_its_warm_up(write_study):
    small, weights = {"data": {"train_images": 200}}, []
    for training in ({}, {"awp": {"gamma": 0.01, "warm_up": 1}}):
        study = Study(write_study(tiny_with(training=training, **small)))
        trainer, after = Trainer(study.run(MADRY), torch.device("cpu")), []
        for _ in range(2):
            run_epoch(trainer)
            after.append(torch.cat([w.detach().flatten() for w in trainer.model.parameters()]))
        weights.append(after)
    (plain_first, plain_second), (first, second) = weights
    assert torch.equal(plain_first, first) and not torch.equal(plain_second, second)
