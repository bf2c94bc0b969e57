"""Difficulty psi and the curriculum lambda: SAT's constraint ``psi(x + delta) <= lambda``.

psi of a sample is (N,); p is the softmax of the logits, ``r = p - onehot(y)``, ``S = diag(p) - p p^T``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sat_core.errors import ConfigError
from sat_core.fields import Frozen, Number, When, at


def probability_gap(logits: Tensor, y: Tensor) -> Tensor:
    """psi_P of P-SAT: the largest wrong-class probability minus the true class's (paper, P-SAT).

    logits (N, classes), y int64 (N,) -> (N,) in [-1, 1]; above 0 exactly where the prediction is wrong.

    Example:
        >>> import torch
        >>> from sat_core import probability_gap
        >>> logits = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]]).log()
        >>> probability_gap(logits, torch.tensor([0, 0]))  # right by 0.2, wrong by 0.5
        tensor([-0.2000,  0.5000])
    """
    p = _wide(logits).softmax(dim=1)
    true = p.gather(1, y[:, None])[:, 0]
    wrong = p.scatter(1, y[:, None], -1.0).amax(dim=1)
    return wrong - true


def top_softmax_eigenvalue(logits: Tensor, iterations: int = 10) -> Tensor:
    """lambda_max(S), (N,) in [0, 1/2], by power iteration from e_1 - e_2 of the two likeliest classes.

    logits (N, classes).

    Example:
        >>> import torch
        >>> from sat_core import top_softmax_eigenvalue
        >>> top_softmax_eigenvalue(torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log())  # two classes: 2 p (1 - p)
        tensor([0.5000, 0.1800])
    """
    p = logits.float().softmax(dim=1)
    first, second = p.topk(2, dim=1).indices.split(1, dim=1)
    v = torch.zeros_like(p).scatter_(1, first, 1.0).scatter_(1, second, -1.0)
    for _ in range(iterations):
        v = F.normalize(p * (v - (p * v).sum(dim=1, keepdim=True)), dim=1)
    return (p * (v - (p * v).sum(dim=1, keepdim=True)).square()).sum(dim=1)


def classifier_curvature(logits: Tensor, features: Tensor) -> Tensor:
    """The top eigenvalue of the loss Hessian's block of the last linear layer: ``lambda_max(S) (|h|^2 + 1)``.

    logits (N, classes), features h (N, d), the last layer's input -> (N,), 0 or more. Exact for that block, hence a
    lower bound of the whole Hessian's. The 1 is the layer's bias.

    Example:
        >>> import torch
        >>> from sat_core import classifier_curvature
        >>> h = torch.tensor([[3.0, 4.0]])
        >>> round(float(classifier_curvature(torch.zeros(1, 2), h)), 3)  # 1/2 (25 + 1)
        13.0
    """
    return top_softmax_eigenvalue(logits) * classifier_gain(features)


def classifier_gain(features: Tensor) -> Tensor:
    """``k = |h|^2 + 1`` (N,): what turns lambda_max(S), of the Hessian in the logits, into that of the last layer."""
    return features.flatten(1).float().square().sum(dim=1) + 1


def gauss_newton_curvature(logits: Tensor, y: Tensor, gradient_norm_squared: Tensor) -> Tensor:
    """An estimate of each sample's largest Gauss-Newton eigenvalue, ``lambda_max(S) |g|^2 / |r|^2``; ours.

    With ``g = J^T r`` the sample's gradient in all weights, ``|g|^2 / |r|^2`` is ``J J^T`` as r sees it. Exact for one
    linear layer; for more neither that eigenvalue nor a bound of it.

    logits (N, classes), y int64 (N,), gradient_norm_squared (N,) -> (N,), 0 or more. :func:`capture` has ``|g|^2``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.nn.functional import cross_entropy
        >>> from sat_core import classifier_curvature, gauss_newton_curvature
        >>> from sat_core.difficulty import capture, parametric_layers
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
        >>> with capture(*parametric_layers(model), deltas=True) as seen:
        ...     logits = model(x)
        ...     cross_entropy(logits, y, reduction="sum").backward()
        >>> curvature = gauss_newton_curvature(logits.detach(), y, seen.gradient_norm_squared())
        >>> torch.allclose(curvature, classifier_curvature(logits.detach(), x))  # one layer: both are exact
        True
    """
    return top_softmax_eigenvalue(logits) * gauss_newton_gain(logits, y, gradient_norm_squared)


def gauss_newton_gain(logits: Tensor, y: Tensor, gradient_norm_squared: Tensor) -> Tensor:
    """``k = |g|^2 / |r|^2`` (N,): what turns lambda_max(S), of the Hessian in the logits, into the estimate.

    0 of a sample that the network is surer of than float32 can say, and whose ``r`` is thus not known.
    """
    p = logits.float().softmax(dim=1)
    r = p - one_hot(y, p.shape[1], p)
    norm_squared = r.square().sum(dim=1)
    return torch.where(norm_squared > 1e-12, gradient_norm_squared / norm_squared.clamp_min(1e-12), 0)


def one_hot(y: Tensor, classes: int, like: Tensor) -> Tensor:
    """Labels (N,) as (N, classes) of 0 and 1, of the dtype of ``like``. F.one_hot makes the processor wait for them."""
    return like.new_zeros(len(y), classes).scatter_(1, y[:, None], 1)


class Capture:
    """What the layers of a network saw in its last pass: their inputs and, once differentiated, output gradients.

    Those of the same layers are equal: in a CUDA graph the one that it was recorded with stands for all.
    """

    def __init__(self, modules: tuple[nn.Module, ...], with_deltas: bool) -> None:
        self.about = (modules, with_deltas)
        self.inputs: dict[nn.Module, Tensor] = {}
        self.deltas: dict[nn.Module, Tensor] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Capture) and self.about == other.about

    def __hash__(self) -> int:
        return hash(self.about)

    def gradient_norm_squared(self) -> Tensor:
        """Squared norm of each sample's own gradient in all captured layers' parameters, (N,).

        Never holds more than one layer's per-sample gradients; where that is cheaper, not even those (ghost norm).
        """
        parts = [_norm_squared(module, self.inputs[module], delta) for module, delta in self.deltas.items()]
        self.deltas.clear()  # of one pass, so that a layer met twice in the next is noticed
        return torch.stack(parts).sum(dim=0)


@contextmanager
def capture(*modules: nn.Module, deltas: bool = False) -> Iterator[Capture]:
    """Record what passes through ``modules`` while the block runs; with ``deltas`` also their outputs' gradients.

    With ``deltas`` a module that is met twice in one pass raises ValueError; without, its last input is kept.
    """
    seen = Capture(modules, deltas)

    def keep(module: nn.Module, gradient: Tensor) -> None:
        if module in seen.deltas:
            raise ValueError(f"{module} is met twice in one pass, so that a sample's gradient in it is not a product")
        seen.deltas[module] = gradient.detach()

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.inputs[module] = inputs[0].detach()
        seen.deltas.pop(module, None)  # of a pass that ended in an error
        if deltas and output.requires_grad:
            output.register_hook(partial(keep, module))

    handles = [module.register_forward_hook(after) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def parametric_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that hold parameters, in order; the last is the classifier."""
    return [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]


def classifier_of(model: nn.Module, classes: int) -> nn.Linear:
    """The last of the layers with parameters; raises ConfigError unless it may be what makes the logits."""
    last = parametric_layers(model)[-1]
    if not isinstance(last, nn.Linear) or last.out_features != classes:
        raise ConfigError(
            "the difficulty is taken from what enters the classifier, so that the layer with parameters that is made "
            f"last must be an nn.Linear to {classes} logits, not {last}"
        )
    return last


def _norm_squared(module: nn.Module, x: Tensor, delta: Tensor) -> Tensor:
    """|d loss_i / d parameters|^2 of one layer for each sample i, from its input and its output's gradient.

    In bfloat16 training products are of bfloat16, sums of float32: within 0.2 % of float32's. Raises ValueError for a
    layer whose gradient is not known here.
    """
    if isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        patches = _patches(module, x.to(delta.dtype))
        delta = delta.flatten(2)
        bias = 0 if module.bias is None else _wide(delta).sum(dim=2).square().sum(dim=1)
        if patches.shape[2] ** 2 < patches.shape[1] * delta.shape[1]:
            return (_wide(patches.mT @ patches) * _wide(delta.mT @ delta)).sum(dim=(1, 2)) + bias
        return _wide(delta @ patches.mT).square().sum(dim=(1, 2)) + bias
    x, delta = _wide(x), _wide(delta)
    if isinstance(module, nn.BatchNorm2d) and module.running_var is not None and module.running_mean is not None:
        scale = (module.running_var + module.eps).rsqrt()[:, None, None]
        normal = (x - module.running_mean[:, None, None]) * scale
        return (delta * normal).sum(dim=(2, 3)).square().sum(dim=1) + delta.sum(dim=(2, 3)).square().sum(dim=1)
    if isinstance(module, nn.Linear) and x.ndim == 2:
        return delta.square().sum(dim=1) * (x.square().sum(dim=1) + (module.bias is not None))
    raise ValueError(
        f"no per-sample gradient norm for {module} with an input of {x.ndim} dimensions: convolutions in 2D without "
        "groups, batch norm in 2D with running statistics and linear layers on (N, features) have one"
    )


def _patches(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """What each output pixel of a convolution sees, (N, inputs of a filter, pixels).

    F.unfold's, which on a GPU goes through the batch image by image.
    """
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    x = F.pad(x, (left, right, top, bottom))
    if conv.dilation != (1, 1):
        return F.unfold(x, conv.kernel_size, conv.dilation, 0, conv.stride)
    (height, width), (down, across) = conv.kernel_size, conv.stride
    windows = x.unfold(2, height, down).unfold(3, width, across)
    return windows.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)


def _wide(values: Tensor) -> Tensor:
    """In float32, or as they are where that is wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Curriculum(Frozen):
    """lambda as a function of the epoch, from ``start`` to ``stop``.

    ``steps``: one equal jump towards ``stop`` at the beginning of each epoch in ``epochs``; ``linear``: it rises with
    each epoch from the first of ``epochs`` on, and has arrived in the one before the second. As the authors' earlier
    code counts: with [30, 70] and stop 0.4 lambda is 0.01 in epoch 30 and 0.4 in epoch 69. Epochs count from 0, or are
    shares of the training.
    """

    kind: Literal["steps", "linear"]
    epochs: list[When] = Field(min_length=1)
    start: Number = 0.0
    stop: Number = 1.0

    def resolved(self, epochs: int) -> Curriculum:
        """With epochs in the place of shares of a training of so many; in a very short one some may fall together."""
        if all(isinstance(when, int) for when in self.epochs):
            return self
        found = [at(when, epochs) for when in self.epochs]
        if self.kind == "steps":
            found = sorted({min(epoch, epochs - 1) for epoch in found})
        elif len(found) == 2:
            found[1] = max(found[1], found[0] + 1)
        return self.model_copy(update={"epochs": found})

    def check(self, epochs: int, low: float, high: float) -> None:
        """Raise ValueError unless the epochs increase and lie within ``epochs``, and lambda within [low, high]."""
        if self.epochs != sorted(set(self.epochs)):
            raise ValueError(f"curriculum.epochs {self.epochs} must increase")
        if self.kind == "linear" and len(self.epochs) != 2:
            raise ValueError(f"a linear curriculum takes two epochs, first and last, not {self.epochs}")
        if self.epochs[-1] >= epochs + (self.kind == "linear"):
            raise ValueError(f"curriculum.epochs {self.epochs} reach beyond the last epoch ({epochs - 1})")
        for name, value in (("start", self.start), ("stop", self.stop)):
            if not low <= value <= high:
                raise ValueError(f"curriculum.{name} {value} is outside the range of this difficulty, {low}..{high}")

    def __call__(self, epoch: int) -> float:
        """lambda of an epoch, counted from 0. Shares of the training must be :meth:`resolved` before.

        Example:
            >>> from sat_core import Curriculum
            >>> steps = Curriculum(kind="steps", epochs=[30, 45, 60])  # the authors' for MNIST
            >>> [round(steps(epoch), 2) for epoch in (0, 30, 45, 60)]
            [0.0, 0.33, 0.67, 1.0]
            >>> line = Curriculum(kind="linear", epochs=[30, 70], stop=0.4)  # and for CIFAR-10
            >>> [round(line(epoch), 2) for epoch in (0, 30, 69, 99)]
            [0.0, 0.01, 0.4, 0.4]
            >>> Curriculum(kind="steps", epochs=[0.5]).resolved(100)(50)
            1.0
        """
        if not all(isinstance(when, int) for when in self.epochs):
            raise ValueError(
                f"curriculum.epochs {self.epochs} are shares: ask .resolved(epochs) for a curriculum first"
            )
        if self.kind == "steps":
            done = sum(epoch >= e for e in self.epochs) / len(self.epochs)
        else:
            first, last = self.epochs
            done = min(1.0, max(0.0, (epoch + 1 - first) / (last - first)))
        return self.start + done * (self.stop - self.start)
