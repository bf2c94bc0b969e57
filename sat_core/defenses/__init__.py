"""Defenses by name: the file ``<name>.py`` in this folder holds the one :class:`Defense` called ``<name>``.

A defense is how to make x' (:meth:`Defense.perturb`: PGD with a stopping rule) and the loss on it
(:meth:`Defense.outer_loss`). Its fields are its options; a study sets them under ``options``.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat_core import plugins
from sat_core.attacks import PGD, Iterate, Perturbation, StoppingRule, cross_entropy, uniform_start
from sat_core.difficulty import Curriculum
from sat_core.errors import ConfigError, in_one_line, unknown
from sat_core.fields import Frozen, parse


@dataclass(frozen=True)
class Batch:
    """One training step as a defense sees it.

    ``x`` float32 (N, C, H, W) in [0, 1]; ``y`` int64 (N,); ``index`` (N,): places in the training set;
    ``classes``: how many there are; ``epoch`` counts from 0; ``state``: the defense's own tensors, kept across steps
    and in checkpoints.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    index: Tensor
    classes: int
    epoch: int
    attack: PGD
    state: dict[str, Tensor] = field(default_factory=dict)


class Defense(Frozen):
    """Base of all defenses. As it stands it is Madry's: PGD on the cross entropy, never stopped, then train on x'."""

    selects_on: ClassVar[str] = "robust"
    """The validation accuracy that chooses the epoch; ``clean`` for a defense that trains on no attacked image, and
    which tables then leave out when they mark the best."""
    looks_inside: ClassVar[bool] = False
    """Whether it hooks the network's layers, which a compiled network hides."""

    def resolved(self, epochs: int) -> Defense:
        """With epochs in the place of shares of a training of so many."""
        return self

    def check(self, epochs: int) -> None:
        """Raise ValueError if the options, resolved, do not fit a training of so many epochs."""

    def curriculum_value(self, epoch: int) -> float | None:
        """The limit of this epoch (lambda), for the records; None where there is no curriculum."""
        return None

    def begins(self) -> int:
        """The first epoch, from 0, in which it is not Madry's any more; for the records."""
        return 0

    def initial_state(self, train_size: int, device: torch.device) -> dict[str, Tensor]:
        """Tensors to keep across steps, at the start of training.

        Change them in :meth:`perturb`, which runs once a step; :meth:`outer_loss` runs twice with ``training.awp``.
        What they hold carries no graph. Those of an image are at its place in ``batch.index``.
        """
        return {}

    def perturb(self, batch: Batch) -> Perturbation:
        """The inner maximisation: x' for a batch.

        The model comes in train mode, and is to be left so; for a forward pass of one's own there is
        :func:`~sat_core.attacks.frozen`, or batch norm's statistics move.
        """
        start = uniform_start(batch.x, batch.attack.epsilon)
        return batch.attack(batch.model, batch.x, cross_entropy(batch.y), start=start)

    def outer_loss(self, batch: Batch, found: Perturbation) -> Tensor:
        """The outer loss on what :meth:`perturb` found, a scalar; the model is in train mode."""
        return F.cross_entropy(batch.model(found.x), batch.y)


class SelfPaced(Defense):
    """PGD on the cross entropy that stops where a difficulty exceeds lambda: the paper's formulation.

    A subclass says what :meth:`difficulty` is; lambda follows ``curriculum``. As in the authors' earlier code, a
    stopped sample keeps the iterate that was found above lambda.
    """

    curriculum: Curriculum
    difficulty_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def resolved(self, epochs: int) -> Defense:
        return self.model_copy(update={"curriculum": self.curriculum.resolved(epochs)})

    def check(self, epochs: int) -> None:
        own = type(self)
        if own.difficulty is SelfPaced.difficulty and own.perturb is SelfPaced.perturb:
            raise ValueError("it has no method `difficulty(batch, iterate)`, which says how difficult a sample is")
        self.curriculum.check(epochs, *self.difficulty_range)

    def curriculum_value(self, epoch: int) -> float:
        return self.curriculum(epoch)

    def difficulty(self, batch: Batch, iterate: Iterate) -> Tensor:
        """psi of the samples still moving, (n,)."""
        raise NotImplementedError

    def perturb(self, batch: Batch) -> Perturbation:
        limit = self.curriculum(batch.epoch)
        return batch.attack(
            batch.model,
            batch.x,
            cross_entropy(batch.y),
            start=uniform_start(batch.x, batch.attack.epsilon),
            keep_going=self.binding(limit, partial(self.within, limit, batch)),
        )

    def within(self, limit: float, batch: Batch, iterate: Iterate) -> Tensor:
        """psi <= lambda, bool (n,)."""
        return self.checked_difficulty(batch, iterate) <= limit

    def checked_difficulty(self, batch: Batch, iterate: Iterate) -> Tensor:
        """What :meth:`difficulty` gives; raises ConfigError where that is not one number a sample."""
        difficulty = self.difficulty(batch, iterate)
        if not isinstance(difficulty, Tensor) or difficulty.shape != iterate.rows.shape:
            is_ = f"has the shape {tuple(difficulty.shape)}" if isinstance(difficulty, Tensor) else f"is {difficulty}"
            raise ConfigError(
                f"defense '{type(self).__name__.lower()}': its difficulty {is_}, where a number for each of "
                f"{len(iterate.rows)} samples is expected"
            )
        return difficulty

    def binding(self, limit: float, rule: StoppingRule) -> StoppingRule | None:
        """``rule``, or None where no difficulty can exceed the limit: then the attack is Madry's at Madry's cost."""
        return rule if limit < self.difficulty_range[1] else None


def find(name: str, file: str | None = None) -> type[Defense]:
    """The class of a defense, of the package or of a plugin's ``file``; raises ConfigError for an unknown name."""
    if file is not None:
        module, offered = plugins.load(file), plugins.read(Path(file)).defenses
        if name not in offered:
            raise ConfigError(f"plugin {file}: {unknown('defense', name, offered)}")
        cls = getattr(module, offered[name])
        if not issubclass(cls, Defense):
            raise ConfigError(f"plugin {file}: {cls.__name__} is no subclass of sat_core.defenses.Defense")
        if cls.selects_on not in ("robust", "clean"):
            raise ConfigError(f"plugin {file}: {cls.__name__}.selects_on is robust or clean, not {cls.selects_on!r}")
        return cls
    if name not in (there := [path.stem for path in Path(__file__).parent.glob("[!_]*.py")]):
        raise ConfigError(unknown("defense", name, there))
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Defense) and member.__module__ == module.__name__
    )
    return found


def build(name: str, options: dict[str, Any], epochs: int, file: str | None = None) -> Defense:
    """The defense ``name`` with its options checked against a training of so many epochs; raises ConfigError.

    ``file``: the plugin that it is in, if it is none of the package's.

    Example:
        >>> from sat_core import defenses
        >>> psat = defenses.build("psat", {"curriculum": {"kind": "linear", "epochs": [0, 10]}}, epochs=10)
        >>> psat.curriculum_value(0), psat.curriculum_value(9)
        (0.1, 1.0)
        >>> defenses.build("madry", {"beta": 6}, epochs=10)
        Traceback (most recent call last):
        sat_core.errors.ConfigError: options of defense 'madry': unknown key 'beta' (allowed: none)
    """
    cls = find(name, file)
    try:
        defense: Defense = parse(cls, options, f"options of defense '{name}'").resolved(epochs)
        defense.check(epochs)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"options of defense '{name}': {error}") from None
    except Exception as error:
        if file is None:
            raise
        raise ConfigError(f"plugin {file}: {cls.__name__} cannot be made: {in_one_line(error)}") from None
    return defense
