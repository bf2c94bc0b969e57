"""The loss as a function of a network's weights, and its Hessian by products with vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sat_core.attacks import check_images


class Objective:
    """``L(theta) = sum_i CE(f_theta(x_i), y_i) / n`` of an eval-mode network, as a function of a flat theta (P,).

    ``x`` (n, C, H, W) in [0, 1], ``y`` int64 (n,). They are taken ``batch_size`` at a time; batches may be unequal:
    their losses are summed, then divided by n. ``theta``: the network's own weights. Raises ValueError for images
    outside [0, 1], and for a network in train mode, whose batch norms would mix the samples.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sat_core import Objective
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
        >>> objective = Objective(model, torch.rand(20, 1, 8, 8), torch.randint(10, (20,)))
        >>> loss, accuracy = objective(torch.zeros_like(objective.theta))  # all weights 0: ln 10
        >>> round(loss, 4), objective.product(objective.theta).shape
        (2.3026, torch.Size([650]))
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 100) -> None:
        if model.training:
            raise ValueError("the network is in train mode: call model.eval() first, its loss is that of one judged")
        check_images(x)
        self.model = model
        self.batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        self.n = len(y)
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self.theta = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        self._kept: tuple[int, Tensor, Tensor] | None = None

    def weights(self, theta: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views of a flat vector."""
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    @torch.no_grad()
    def __call__(self, theta: Tensor) -> tuple[float, float]:
        """Loss and accuracy in [0, 1] at theta."""
        weights, loss, correct = self.weights(theta), 0.0, 0
        for x, y in self.batches:
            logits = functional_call(self.model, weights, x)
            loss += F.cross_entropy(logits, y, reduction="sum").item()
            correct += int((logits.argmax(dim=1) == y).sum())
        return loss / self.n, correct / self.n

    @torch.enable_grad()
    def product(self, vector: Tensor) -> Tensor:
        """Hessian times ``vector`` (P,), exactly: the gradient of the gradient's inner product with it.

        Forward over reverse (Pearlmutter 1994) takes up to twice as long. The gradient's graph is kept until another
        batch needs one: where all images are one batch it is made once.
        """
        total = torch.zeros_like(vector)
        for batch in range(len(self.batches)):
            theta, gradient = self._gradient(batch)
            # as the gradient's argument, `vector` would have torch import sympy
            total += torch.autograd.grad(gradient @ vector, theta, retain_graph=True)[0]
        return total / self.n

    def _gradient(self, batch: int) -> tuple[Tensor, Tensor]:
        """theta, and the gradient there of a batch's summed loss, to be differentiated again."""
        if self._kept is None or self._kept[0] != batch:
            self._kept = None  # two graphs are never alive
            theta, (x, y) = self.theta.clone().requires_grad_(), self.batches[batch]
            loss = F.cross_entropy(functional_call(self.model, self.weights(theta), x), y, reduction="sum")
            self._kept = batch, theta, torch.autograd.grad(loss, theta, create_graph=True)[0]
        return self._kept[1:]


def gaussians(count: int, like: Tensor, seed: int) -> list[Tensor]:
    """Standard normal vectors, drawn on the CPU so that they are the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device) for _ in range(count)]
