"""What the tests of defenses share: a batch in float64, and PGD sample by sample with nothing clever in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sat_core.attacks import PGD, Perturbation
from sat_core.defenses import Batch, Defense, build

EPOCHS, CLASSES = 10, 5
ATTACK = PGD(0.2, 0.05, 6)


def make_batch(n: int = 9, epoch: int = 5, norm: bool = False, dtype: torch.dtype = torch.float64) -> Batch:
    """Random images of 4x4 in 5 classes before a small network, most of which it has learnt a little."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3), *([nn.BatchNorm2d(6)] if norm else []), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)]
    model = nn.Sequential(*layers).to(dtype)
    x = torch.rand(n, 1, 4, 4, dtype=dtype)
    with torch.no_grad():
        model[-1].weight.mul_(4)
        y = model.eval()(x).argmax(dim=1)
    y[::4] = (y[::4] + 1) % CLASSES  # and some of which it has not
    return Batch(model.train(), x, y, torch.arange(n), CLASSES, epoch, ATTACK)


def defense(name: str, **options: object) -> Defense:
    """A defense for a training of 10 epochs."""
    return build(name, options, EPOCHS)


def perturbed(batch: Batch, like: Defense, seed: int = 3) -> Perturbation:
    """What a defense makes of a batch with known random numbers."""
    torch.manual_seed(seed)
    return like.perturb(batch)


def near(batch: Batch) -> Perturbation:
    """Points in the ball that no attack has found."""
    torch.manual_seed(4)
    x = (batch.x + 0.2 * (2 * torch.rand_like(batch.x) - 1)).clamp(0, 1)
    return Perturbation(x, torch.full_like(batch.y, 6))


def probabilities(model: nn.Module, x: Tensor) -> list[Tensor]:
    """p of one image, by the definition of the softmax."""
    powers = [value.exp() for value in model(x[None])[0]]
    return [power / sum(powers) for power in powers]


def plain_pgd(
    batch: Batch,
    start: Tensor,
    loss: Callable[[list[Tensor], int], Tensor],
    rule: Callable[[list[Tensor], int], bool] = lambda p, i: True,
) -> Tensor:
    """x' of each sample alone: up the ``loss(p, i)`` of its probabilities while the ``rule(p, i)`` says so."""
    batch.model.eval()
    results = []
    for i, clean in enumerate(batch.x):
        z = start[i].clone()
        for _ in range(batch.attack.steps):
            z = z.detach().requires_grad_()
            p = probabilities(batch.model, z)
            if not rule(p, i):
                break
            (gradient,) = torch.autograd.grad(loss(p, i), z)
            z = z + batch.attack.step_size * gradient.sign()
            z = z.clamp(clean - batch.attack.epsilon, clean + batch.attack.epsilon).clamp(0, 1)
        results.append(z.detach())
    batch.model.train()
    return torch.stack(results)


def differences(batch: Batch, loss: Tensor, expected: Tensor) -> float:
    """The largest difference of two losses and of their gradients in the parameters."""
    parameters = list(batch.model.parameters())
    ours, theirs = (torch.autograd.grad(value, parameters, retain_graph=True) for value in (loss, expected))
    assert any(gradient.abs().max() > 1e-3 for gradient in theirs)  # there is something to compare
    return max((a - b).abs().max().item() for a, b in zip([loss, *ours], [expected, *theirs], strict=True))


def in_ball(batch: Batch, x: Tensor, share: float = 1.0) -> bool:
    """Whether x' is an image, and no further from x than epsilon, or that share of it."""
    far = (x - batch.x).abs().max().item()
    return bool((x >= 0).all() and (x <= 1).all()) and far <= share * batch.attack.epsilon + 1e-7


def same(a: Perturbation, b: Perturbation) -> bool:
    """Whether two attacks found the same, bit for bit, in as many steps."""
    return torch.equal(a.x, b.x) and torch.equal(a.steps, b.steps)
