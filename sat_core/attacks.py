"""Projected gradient descent in L_inf, with a per-sample question asked before every step: keep going?

Every defense of the paper is this attack with another stopping rule, inner loss or budget, and a loss on its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Perturbation:
    """What an attack made of a batch: ``x`` (N, C, H, W) in [0, 1], and the sign steps each sample took, (N,)."""

    x: Tensor
    steps: Tensor


class Iterate:
    """The samples still under attack, before a step: what a stopping rule may look at.

    ``rows`` (n,): which samples of the batch these are; ``x`` (n, C, H, W); ``logits`` (n, classes).
    """

    def __init__(self, x: Tensor, logits: Tensor, loss: Tensor, rows: Tensor) -> None:
        self.x, self.rows, self._graph_logits, self._loss = x, rows, logits, loss
        self.logits = logits.detach()
        self.loss = loss.detach()

    @cached_property
    def gradient(self) -> Tensor:
        """Per-sample gradient of the inner loss in the pixels (n, C, H, W): that of the summed, not the mean, loss."""
        return torch.autograd.grad(self._loss.sum(), self.x)[0]


InnerLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits of the samples still moving, their rows) -> loss of each, to be maximised."""
StoppingRule = Callable[[Iterate], Tensor]
"""Iterate -> bool (n,), True where the sample may take one more step. A sample that stops never moves again."""


@dataclass(frozen=True)
class PGD:
    """The settings of an L_inf PGD in pixel units; calling it attacks a batch."""

    epsilon: float
    step_size: float
    steps: int

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        loss: InnerLoss,
        *,
        start: Tensor,
        keep_going: StoppingRule | None = None,
        epsilon: Tensor | float | None = None,
        step_size: Tensor | float | None = None,
    ) -> Perturbation:
        """Maximise ``loss`` over the ball of radius epsilon around ``x``, within [0, 1], from ``start``.

        ``epsilon`` and ``step_size`` stand in for the attack's own and may be per sample, (N, 1, 1, 1). The model is
        in eval mode and its parameters are frozen meanwhile; modes, parameters and their ``.grad`` come back as they
        were. Samples that ``keep_going`` stops leave the batch, so that they cost nothing more.
        """
        epsilon = self.epsilon if epsilon is None else epsilon
        low, high = (x - epsilon).clamp_(min=0), (x + epsilon).clamp_(max=1)
        size = torch.as_tensor(self.step_size if step_size is None else step_size, device=x.device).expand(
            len(x), 1, 1, 1
        )
        result = start.detach().clone()
        taken = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        rows = torch.arange(len(x), device=x.device)
        current = result
        with frozen(model):
            for _ in range(self.steps):
                with torch.enable_grad():
                    current = current.detach().requires_grad_()
                    logits = model(current)
                    iterate = Iterate(current, logits, loss(logits, rows), rows)
                if keep_going is not None:
                    move = keep_going(iterate)
                    if not move.any():
                        break
                current, direction = current.detach(), iterate.gradient.sign_()
                if keep_going is not None and not move.all():
                    current, direction, rows = current[move], direction[move], rows[move]
                    low, high, size = low[move], high[move], size[move]
                current = (current + size * direction).clamp_(low, high)
                taken[rows] += 1
                result[rows] = current
        return Perturbation(result, taken)


def uniform_start(x: Tensor, epsilon: Tensor | float) -> Tensor:
    """x plus uniform noise in [-epsilon, epsilon], clamped to [0, 1]; drawn from torch's global RNG."""
    return (x + epsilon * (2 * torch.rand_like(x) - 1)).clamp_(0, 1)


def cross_entropy(y: Tensor) -> InnerLoss:
    """Cross entropy against labels int64 (N,)."""
    return lambda logits, rows: F.cross_entropy(logits, y[rows], reduction="none")


def while_correct(y: Tensor) -> StoppingRule:
    """Stop a sample once it is misclassified: all that is needed to count robust accuracy."""
    return lambda iterate: iterate.logits.argmax(dim=1) == y[iterate.rows]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and parameters that need no gradient, for the length of the block; then all as before."""
    modes = [(module, module.training) for module in model.modules()]
    needs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, need in needs:
            parameter.requires_grad_(need)
