"""Projected gradient descent in L_inf, with a per-sample question asked before every step: keep going?

Every defense of the paper is this attack with another stopping rule, inner loss or budget, and a loss on its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat_core.graphs import Graphs

PARTS = {"cuda": 8}
"""A batch shrinks by such a part of it at once: cuDNN plans every layer anew for each size that it has not met."""
ASKED = 8
"""In a CUDA graph's replays it is asked every so many steps whether any sample still moves."""


@dataclass(frozen=True)
class Perturbation:
    """What an attack made of a batch: ``x`` (N, C, H, W) in [0, 1], and the sign steps each sample took, (N,).

    ``target``: soft labels (N, classes), where a defense made its own; ``weights`` (N,) of the samples in the outer
    loss, likewise.
    """

    x: Tensor
    steps: Tensor
    target: Tensor | None = None
    weights: Tensor | None = None


class Iterate:
    """The samples still in the batch, before a step: what a stopping rule may look at. It cannot free one that stopped.

    ``rows`` (n,): which samples of the batch these are; ``x`` (n, C, H, W); ``logits`` (n, classes); ``loss`` (n,),
    the inner loss of each; ``step``: how many steps came before, in a CUDA graph as a tensor ().
    """

    def __init__(self, x: Tensor, logits: Tensor, loss: Tensor, rows: Tensor, step: int | Tensor) -> None:
        self._leaf, self._loss = x, loss
        self.x, self.logits, self.loss = x.detach(), logits.detach(), loss.detach()
        self.rows, self.step = rows, step

    @cached_property
    def gradient(self) -> Tensor:
        """The gradient in the pixels (n, C, H, W) of each sample's own inner loss, thus of the sum, not of the mean."""
        return torch.autograd.grad(self._loss.sum(), self._leaf)[0]


InnerLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits of the samples still moving, their rows) -> loss of each, to be maximised."""
StoppingRule = Callable[[Iterate], Tensor]
"""Iterate -> bool (n,), True where the sample may take one more step. A sample that stops never moves again."""


@dataclass(frozen=True)
class Step:
    """What a step of PGD consists of: look at the samples, ask the rule about them, move them."""

    model: nn.Module
    loss: InnerLoss
    rule: StoppingRule | None
    noise: float
    batchnorm: Literal["eval", "train"]

    def look(self, x: Tensor, rows: Tensor, step: int | Tensor) -> Iterate:
        """The forward pass on x (n, C, H, W)."""
        leaf = x.detach().requires_grad_()
        logits = self.model(leaf)
        iterate = Iterate(leaf, logits, self.loss(logits, rows), rows, step)
        if iterate.loss.shape != rows.shape:
            raise ValueError(f"the loss must give a value a sample, ({len(rows)},), not {iterate.loss.shape}")
        return iterate

    def ask(self, iterate: Iterate, go: Tensor) -> Tensor:
        """``go`` (n,), less the samples that the rule stops."""
        if self.rule is None:
            return go
        answer = self.rule(iterate)
        if answer.shape != go.shape or answer.dtype != torch.bool:
            raise ValueError(f"a stopping rule answers bool ({len(go)},), not {answer.dtype} {answer.shape}")
        return go & answer

    def move(self, iterate: Iterate, size: Tensor | float, bounds: Tensor) -> Tensor:
        """A step up the loss, back into the bounds (2, n, C, H, W)."""
        moved = iterate.x + size * iterate.gradient.sign()
        if self.noise:
            moved += self.noise * torch.randn_like(moved)
        return moved.clamp_(*bounds)


@dataclass(frozen=True)
class Moving:
    """A batch on its way, in tensors that change in place: what a CUDA graph of a step works on."""

    x: Tensor
    bounds: Tensor
    size: Tensor
    rows: Tensor
    go: Tensor
    taken: Tensor
    number: Tensor

    def advance(self, step: Step) -> None:
        """One step of all; of those that stopped, nothing comes."""
        iterate = step.look(self.x, self.rows, self.number)
        self.go.copy_(step.ask(iterate, self.go))
        moved = step.move(iterate, self.size, self.bounds)
        self.x.copy_(moved if step.rule is None else torch.where(self.go[:, None, None, None], moved, self.x))
        self.taken.add_(self.go)
        self.number.add_(1)


@dataclass(frozen=True)
class PGD:
    """The settings of an L_inf PGD in pixel units; calling it attacks a batch.

    ``epsilon`` in (0, 1], ``step_size`` above 0, ``steps`` 0 or more: else ValueError. ``batchnorm``: ``eval``, or
    ``train`` for the statistics of the attacked batch itself; nothing is updated in either. ``graphs``: on a GPU, take
    the steps on whole batches by CUDA graphs, where loss and rule are partials that close over nothing.

    Example:
        Madry's attack, and P-SAT's, which stops a sample once the network is wrong about it by a margin.

        >>> import torch
        >>> from torch import nn
        >>> from sat_core import PGD, cross_entropy, probability_gap, uniform_start
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> x, y = torch.rand(32, 1, 8, 8), torch.randint(10, (32,))
        >>> attack = PGD(epsilon=0.1, step_size=0.025, steps=10)
        >>> start = uniform_start(x, attack.epsilon)
        >>> found = attack(model, x, cross_entropy(y), start=start)
        >>> bool((found.x - x).abs().max() <= 0.1 + 1e-6), int(found.steps.min())
        (True, 10)
        >>> paced = attack(
        ...     model,
        ...     x,
        ...     cross_entropy(y),
        ...     start=start,
        ...     keep_going=lambda iterate: probability_gap(iterate.logits, y[iterate.rows]) <= 0.1,
        ... )
        >>> bool((paced.steps <= found.steps).all() and paced.steps.min() < 10)
        True
    """

    epsilon: float
    step_size: float
    steps: int
    batchnorm: Literal["eval", "train"] = "eval"
    graphs: Graphs | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1 or not self.step_size > 0 or self.steps < 0:
            raise ValueError(f"{self}: epsilon is in pixel units, in (0, 1], the step size above 0, steps 0 or more")
        if self.batchnorm not in ("eval", "train"):
            raise ValueError(f"batchnorm '{self.batchnorm}' is neither eval nor train")

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
        noise: float = 0.0,
    ) -> Perturbation:
        """Maximise ``loss`` over the ball of radius epsilon around ``x``, within [0, 1], from ``start``.

        ``x`` and ``start`` (N, C, H, W), floating point; ``loss``: (logits (n, classes), rows (n,)) -> (n,).
        A sample that ``keep_going`` stops stays for good at the iterate it was stopped at; it leaves the batch (which a
        GPU has shrink by eighths) and costs nothing more, unless batch norm looks at the whole batch. ``epsilon`` and
        ``step_size`` stand in for the attack's own and may be per sample, (N, 1, 1, 1). ``noise``: the standard
        deviation of a Gaussian that is added to every step before it is projected; with 0 nothing is drawn. Parameters
        are frozen meanwhile; the model comes back as it was: modes, buffers, ``.grad``. Raises ValueError for images
        outside [0, 1] and for a loss that is not one value a sample.
        """
        graphs = self.graphs if self.graphs and self.steps and self.graphs.fit(len(x), loss, keep_going) else None
        if graphs is None or not graphs.found:  # later batches are trusted: to look at one is to wait for the GPU
            check_images(x)
        if isinstance(epsilon, (int, float)) and not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon {epsilon} is not in [0, 1]: it is in pixel units, such as 8 / 255")
        if getattr(loss, "func", loss) is F.cross_entropy:
            raise ValueError("the loss is called with (logits, rows), not with labels: pass cross_entropy(y)")
        epsilon = self.epsilon if epsilon is None else epsilon
        size = self.step_size if step_size is None else step_size
        check_of_each(x, epsilon=epsilon, step_size=size)
        bounds = torch.stack([(x - epsilon).clamp_(min=0), (x + epsilon).clamp_(max=1)])
        step = Step(model, loss, keep_going, noise, self.batchnorm)
        with frozen(model, self.batchnorm), torch.enable_grad():
            found = None if graphs is None else self._by_graph(graphs, step, start, size, bounds)
            found = found or self._one_by_one(step, start, size, bounds)
        if keep_going is not None or not self.steps:  # who stops before the first step has not been projected yet
            found.x.clamp_(*bounds)
        return found

    def _by_graph(
        self, graphs: Graphs, step: Step, start: Tensor, size: Tensor | float, bounds: Tensor
    ) -> Perturbation | None:
        """The steps as replays of one CUDA graph, in which samples that stop stay in the batch."""
        rows = torch.arange(len(start), device=start.device)
        moving = Moving(
            x=start.detach().clone(),
            bounds=bounds,
            size=size if isinstance(size, Tensor) else start.new_full((), size),
            rows=rows,
            go=torch.ones_like(rows, dtype=torch.bool),
            taken=torch.zeros_like(rows),
            number=rows.new_zeros(()),
        )
        begun = graphs.begin(partial(Moving.advance, moving, step))
        if begun is None:
            return None
        graph, tensors = begun
        for number in range(1, self.steps):
            if step.rule is not None and number % ASKED == 0 and not graph.call.args[0].go.any():
                break
            graph.replay()
        graph.unload(tensors)
        return Perturbation(moving.x, moving.taken)

    def _one_by_one(self, step: Step, start: Tensor, size: Tensor | float, bounds: Tensor) -> Perturbation:
        """The steps as they are written; samples that stop leave the batch."""
        current = start.detach()
        result = current.clone()
        rows = torch.arange(len(start), device=start.device)
        taken = torch.zeros_like(rows)
        go, moving = torch.ones_like(rows, dtype=torch.bool), len(start)
        granule = -(-len(start) // PARTS.get(start.device.type, len(start))) if len(start) else 1
        leaving = self.batchnorm == "eval"  # in train mode every sample's logits depend on the whole batch
        for number in range(self.steps):
            iterate = step.look(current, rows, number)
            if step.rule is not None:
                go = step.ask(iterate, go)
                moving = int(go.sum())  # the one thing a GPU's queue has to be waited for
            if not moving:
                break
            moved = step.move(iterate, size, bounds)
            kept = -(-moving // granule) * granule
            if leaving and kept < len(rows):
                result.index_copy_(0, rows, current)
                keep = go.argsort(descending=True, stable=True)[:kept]
                current, moved, rows, go = (t.index_select(0, keep) for t in (current, moved, rows, go))
                bounds = bounds.index_select(1, keep)
                if isinstance(size, Tensor):
                    size = size.index_select(0, keep)
            if moving < len(rows):
                moved = torch.where(go[:, None, None, None], moved, current)
            current = moved
            taken.index_add_(0, rows, go.long())
        result.index_copy_(0, rows, current)
        return Perturbation(result, taken)


def check_images(x: Tensor) -> None:
    """Raise ValueError unless ``x`` are images as everything here takes them: floating point NCHW in [0, 1]."""
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"images must be floating point (N, C, H, W), not {x.dtype} {tuple(x.shape)}")
    if len(x) and not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(
            f"images must lie in [0, 1], these lie in [{x.min():g}, {x.max():g}]: normalise inside the model, and "
            "divide bytes by 255"
        )


def check_of_each(x: Tensor, **values: Tensor | float) -> None:
    """Raise ValueError unless each is a number or one a sample, (N, 1, 1, 1): (N,) might be taken for pixel columns."""
    for name, value in values.items():
        if isinstance(value, Tensor) and value.ndim and value.shape != (len(x), 1, 1, 1):
            raise ValueError(f"{name} is a number, or one a sample, ({len(x)}, 1, 1, 1), not {tuple(value.shape)}")


def uniform_start(x: Tensor, epsilon: Tensor | float) -> Tensor:
    """x plus uniform noise in [-epsilon, epsilon], clamped to [0, 1]; drawn from torch's global RNG.

    ``x`` (N, C, H, W) in [0, 1]; ``epsilon`` in pixel units, a number or one a sample, (N, 1, 1, 1).

    Example:
        >>> import torch
        >>> from sat_core import uniform_start
        >>> start = uniform_start(torch.full((2, 1, 8, 8), 0.5), 0.1)
        >>> bool((start - 0.5).abs().max() <= 0.1 + 1e-6)
        True
    """
    check_of_each(x, epsilon=epsilon)
    return (x + epsilon * (2 * torch.rand_like(x) - 1)).clamp_(0, 1)


def normal_start(x: Tensor, deviation: float = 0.001) -> Tensor:
    """x plus a little Gaussian noise, which PGD projects; drawn from torch's global RNG."""
    return x + deviation * torch.randn_like(x)


def cross_entropy(y: Tensor) -> InnerLoss:
    """Cross entropy of each sample against labels int64 (N,), for the attack to maximise.

    Example:
        >>> import torch
        >>> from sat_core import cross_entropy
        >>> loss = cross_entropy(torch.tensor([3, 7]))
        >>> loss(torch.zeros(1, 10), torch.tensor([1]))  # of sample 1 alone: ln 10
        tensor([2.3026])
    """
    return partial(_cross_entropy, y)


def _cross_entropy(y: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
    return F.cross_entropy(logits, y[rows], reduction="none")


def while_correct(y: Tensor) -> StoppingRule:
    """Stop a sample once it is misclassified: all that is needed to count robust accuracy. ``y`` int64 (N,).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sat_core import PGD, cross_entropy, while_correct
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.rand(8, 1, 8, 8)
        >>> y = model(x).argmax(dim=1)
        >>> attack = PGD(epsilon=0.3, step_size=0.1, steps=10)
        >>> found = attack(model, x, cross_entropy(y), start=x, keep_going=while_correct(y))
        >>> float((model(found.x).argmax(dim=1) == y).float().mean())
        0.0
    """
    return partial(_correct, y)


def _correct(y: Tensor, iterate: Iterate) -> Tensor:
    return iterate.logits.argmax(dim=1) == y[iterate.rows]


@contextmanager
def frozen(model: nn.Module, batchnorm: Literal["eval", "train"] = "eval") -> Iterator[None]:
    """Eval mode and parameters that need no gradient, for the length of the block; then all as before.

    With ``batchnorm="train"`` the batch norms use the batch's own statistics, and update nothing.

    Example:
        >>> from torch import nn
        >>> from sat_core import frozen
        >>> model = nn.Linear(2, 2)
        >>> with frozen(model):
        ...     model.training, model.weight.requires_grad
        (False, False)
        >>> model.training, model.weight.requires_grad
        (True, True)
    """
    modules, parameters = list(model.modules()), list(model.parameters())
    modes = [(module, module.training, getattr(module, "track_running_stats", None)) for module in modules]
    needs = [parameter.requires_grad for parameter in parameters]
    try:
        model.eval().requires_grad_(False)
        for module in modules:
            if batchnorm == "train" and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training, module.track_running_stats = True, False
        yield
    finally:
        for module, mode, tracks in modes:
            module.training = mode
            if tracks is not None:
                module.track_running_stats = tracks
        for parameter, need in zip(parameters, needs, strict=True):
            parameter.requires_grad_(need)
