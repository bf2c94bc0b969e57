"""Adversarial weight perturbation (Wu, Xia and Wang 2020): train where the loss near the weights is highest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def adversarial_weights(model: nn.Module, loss: Callable[[], Tensor], gamma: float) -> Iterator[None]:
    """Within the block each layer's weights W stand at ``W + gamma |W| g / |g|``, g the gradient of ``loss()`` in W.

    Layers are the parameters of two dimensions or more, as in the authors' code; biases and batch norms stay, and so
    does what is frozen or has no part in the loss. The block computes the gradient for the optimiser; after it the
    weights are what they were, to the bit, and ``.grad`` is as the block left it. Taking g leaves no trace in batch
    norm's statistics.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sat_core import adversarial_weights
        >>> _ = torch.manual_seed(0)
        >>> model, x, y = nn.Linear(4, 3), torch.rand(8, 4), torch.arange(8) % 3
        >>> loss = lambda: nn.functional.cross_entropy(model(x), y)
        >>> before, plain = model.weight.detach().clone(), loss().item()
        >>> with adversarial_weights(model, loss, gamma=0.1):
        ...     moved = loss()
        ...     moved.backward()
        >>> moved.item() > plain, bool((model.weight == before).all()), model.weight.grad is not None
        (True, True, True)
    """
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1 and parameter.requires_grad]
    buffers = [buffer.clone() for buffer in model.buffers()]
    gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight.add_(gradient * (gamma * weight.norm() / gradient.norm().clamp_min(1e-20)))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
