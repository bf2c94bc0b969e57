"""What should be known of a network before its robustness is believed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat_core.attacks import frozen


def doubts(model: nn.Module, x: Tensor, y: Tensor) -> list[str]:
    """What speaks against believing an attack on this network, a sentence each; none where nothing does.

    Images x (N, C, H, W), labels y int64 (N,). Whether all images lie in [0, 1], logits are finite, no probabilities
    and the same in a second pass, no image's gradient is zero, and more images are right than always the most frequent
    class would be. Raises RuntimeError where the output cannot be differentiated in the image.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sat_core.sanity import doubts
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> doubts(linear, x, linear(x).argmax(dim=1))
        []
        >>> doubts(nn.Sequential(linear, nn.Softmax(dim=1)), x, linear(x).argmax(dim=1))
        ['its outputs are probabilities, where logits are expected']
    """
    with frozen(model), torch.enable_grad():
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        gradient = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), leaf)[0]
        again = model(x).detach()
    logits, still = logits.detach(), int((gradient.flatten(1) == 0).all(dim=1).sum())
    right, most = int((logits.argmax(dim=1) == y).sum()), int(y.bincount().max())
    apart = float((F.normalize(logits, dim=1) - F.normalize(again, dim=1)).norm(dim=1).max())
    probable = bool((logits >= 0).all() and (logits.sum(dim=1) - 1).abs().max() < 1e-4)
    found = {
        f"images lie in [{x.min():.3g}, {x.max():.3g}], not in [0, 1]": x.min() < 0 or x.max() > 1,
        "its outputs are not finite": not logits.isfinite().all(),
        "its outputs are probabilities, where logits are expected": probable,
        "two passes over the same images give different outputs: AutoAttack `standard` may miss attacks": apart > 1e-4,
        f"the gradient is zero at {still} of {len(y)} images, where gradient attacks find nothing": still > 0,
        f"it is right about {right} of {len(y)} images, and always the same answer about {most}: are mean, std and the "
        "order of classes those that it was trained with?": right <= most < len(y),
    }
    return [sentence for sentence, holds in found.items() if holds]
