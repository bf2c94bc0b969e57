"""The state of one training: epochs of perturb, loss, step; robust validation; the best weights kept."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, NoReturn, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from sat_core import defenses, graphs, models
from sat_core.augmentation import AUGMENTATIONS
from sat_core.awp import adversarial_weights
from sat_core.errors import Hopeless
from sat_core.fields import at
from sat_core.runs import optimiser
from sat_core.runs.data import load
from sat_core.runs.device import best_precision, device_name, peak_memory, precision_on, take_device
from sat_core.runs.network import accuracies, at_once, fresh_model, is_small, training_attack, validation_attack
from sat_core.runs.trivial import as_good_as_a_constant
from sat_core.study import Run

log = logging.getLogger(__name__)

CHECKED = 50
"""Every so many steps it is asked whether the loss is finite."""


class Trainer:
    """The state of one training, from the first epoch to the last."""

    PLAIN = (
        "epoch",
        "step_count",
        "order",
        "sums",
        "seconds",
        "memory",
        "history",
        "best",
        "defense_state",
        "precision",
    )
    MODULES = ("model", "optimizer", "scheduler")

    def __init__(self, run: Run, device: torch.device | None = None) -> None:
        usual = take_device(run)
        self.run, self.device = run, device or usual
        self.train_images, self.validation_images = (part.to(self.device) for part in load(run, "train", "validation"))
        self.attack = training_attack(run)
        self.defense = defenses.build(run.base, run.options, run.training.epochs, run.defense_file)
        seed_everything(run.seed)
        self.model = fresh_model(run).to(self.device)
        asked = run.training.precision
        self.compute_in(best_precision(self.device) if asked == "auto" else precision_on(self.device, asked))
        self.average = optimiser.average(run.training, self.model)  # a copy, which must not call the compiled original
        if run.training.compile:
            models.compile_in_place(self.model, run.training.batch_size)
        elif self.device.type == "cuda" and graphs.are_wanted():
            by_graph = graphs.Graphs(run.training.batch_size, stopping=is_small(self.model))
            self.attack = replace(self.attack, graphs=by_graph)
        self.defense_state = self.defense.initial_state(len(self.train_images), self.device)
        config = run.training
        self.optimizer = optimiser.optimizer(config, self.model)
        self.steps_an_epoch = -(-len(self.train_images) // config.batch_size)
        self.scheduler = optimiser.scheduler(config, self.optimizer, self.steps_an_epoch)
        self.epoch = self.step_count = 0
        self.order: Tensor | None = None
        self.sums = torch.zeros(3, device=self.device)
        self.seconds = 0.0
        self.memory: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self.latest: tuple[Tensor, ...] = ()
        """Of the last step: x as it was attacked, x', y, and the loss."""
        self.best: dict[str, Any] = {"score": (-1.0,), "epoch": -1, "weights": {}, "raw": {}}

    def compute_in(self, precision: Literal["float32", "bfloat16", "tf32"]) -> None:
        """From now on train in this precision."""
        self.precision = precision
        models.compute_in(precision, self.model)
        log.info(
            "training in %s on %s%s",
            precision,
            device_name(self.device),
            ", which emulates it, many times slower than float32; `precision: auto` would not"
            if precision == "bfloat16" and best_precision(self.device) == "float32"
            else "",
        )

    def steps(self) -> Iterator[None]:
        """Take the optimiser steps that are left of this epoch, one by one; between two, all state is in self."""
        if self.order is None:
            self.order = torch.randperm(len(self.train_images))
        size, done = self.run.training.batch_size, self.step_count
        batches = tqdm(
            self.train_images.batches(self.order[done * size :], size),
            f"epoch {self.epoch + 1}/{self.run.training.epochs}",
            total=self.steps_an_epoch,
            initial=done,
            leave=False,
            disable=None,
        )
        began = time.perf_counter()
        for batch in batches:
            self.sums += self.step(*batch)
            self.step_count += 1
            if self.step_count % CHECKED == 0:
                self.check_loss()
            began, before = time.perf_counter(), began
            self.seconds += began - before
            yield

    @property
    def network(self) -> models.Normalized:
        """What is validated, selected and judged: the averaged weights, once there are any, else those in training."""
        if self.average is not None and self.average.n_averaged:
            return cast(models.Normalized, self.average.module)
        return self.model

    def finish_epoch(self) -> None:
        """After the last step: validate, keep the weights if they are the best, and add a row to the history."""
        began = time.perf_counter()
        self.check_loss()
        self.average_weights("swa")
        if not all(bool(weights.isfinite().all()) for weights in self.model.parameters()):
            self.give_up("a weight is not finite")
        clean, robust = self.validate()
        loss, steps, stopped = (self.sums / len(self.train_images)).tolist()
        self.history.append(
            {
                "epoch": self.epoch,
                "lr": self.optimizer.param_groups[0]["lr"],
                "loss": loss,
                "validation_clean": clean,
                "validation_robust": robust,
                "lambda": self.defense.curriculum_value(self.epoch),
                "stopped": stopped,
                "steps": steps,
                "seconds": self.seconds + time.perf_counter() - began,
            }
        )
        now = peak_memory(self.device)
        self.memory = {place: max(used, self.memory.get(place, 0.0)) for place, used in now.items()}
        if (score := self.score(clean, robust)) > tuple(self.best["score"]):
            raw = weights_of(self.model) if self.average is not None else {}
            self.best = {"score": score, "epoch": self.epoch, "weights": weights_of(self.network), "raw": raw}
        self.epoch += 1
        if not optimiser.is_per_step(self.run.training):
            self.scheduler.step()
        self.step_count, self.order, self.seconds = 0, None, 0.0
        self.sums = torch.zeros_like(self.sums)
        log.info(
            "epoch %d/%d: loss %.4f, validation clean %.1f %%, robust %.1f %%, %.1f PGD steps a sample",
            *(self.epoch, self.run.training.epochs, loss, 100 * clean, 100 * robust, steps),
        )

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """One optimiser step on training images x, y at ``index``; returns summed loss, PGD steps, stopped samples."""
        for name in self.run.training.augmentation:
            x = AUGMENTATIONS[name](x)
        self.model.train()
        batch = defenses.Batch(
            *(self.model, x, y, index, self.run.data.classes, self.epoch, self.attack, self.defense_state)
        )
        found = self.defense.perturb(batch)
        self.optimizer.zero_grad()
        with self.moved_weights(lambda: self.defense.outer_loss(batch, found)):
            loss = self.defense.outer_loss(batch, found)
            loss.backward()
        if self.run.training.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.run.training.clip)
        self.optimizer.step()
        if optimiser.is_per_step(self.run.training):
            self.scheduler.step()
        self.average_weights("ema")
        self.latest = x, found.x.detach(), y, loss.detach()
        attacked = self.defense.selects_on == "robust"  # where nothing is attacked, nothing is stopped
        stopped = attacked * (found.steps < self.attack.steps).sum()
        return torch.stack([loss.detach() * len(y), found.steps.sum(), stopped])

    def moved_weights(self, loss: Callable[[], Tensor]) -> contextlib.AbstractContextManager[None]:
        """Where the loss is taken: at the weights themselves or, with ``awp``, where it is highest near them."""
        awp = self.run.training.awp
        if awp is None or self.epoch < at(awp.warm_up, self.run.training.epochs):
            return contextlib.nullcontext()
        return adversarial_weights(self.model, loss, awp.gamma)

    @property
    def begins(self) -> int:
        """The first epoch, from 0, in which all is at work that the run is named for: weights, AWP, averages."""
        config = self.run.training
        added = [config.awp.warm_up if config.awp else 0, config.average_from if config.average else 0]
        return max(self.defense.begins(), *(at(when, config.epochs) for when in added))

    def average_weights(self, kind: str) -> None:
        """Take the present weights into the average, if it is of that kind: ``ema`` each step, ``swa`` each epoch.

        For ``swa`` batch norm's statistics are measured anew, on the training images as they are.
        """
        config = self.run.training
        if self.average is None or config.average != kind or self.epoch < at(config.average_from, config.epochs):
            return
        self.average.update_parameters(self.model)
        if kind == "swa":
            order = torch.arange(len(self.train_images))
            update_bn((x for _, x, _ in self.train_images.batches(order, config.batch_size)), self.average)

    def score(self, clean: float, robust: float) -> tuple[float, ...]:
        """What the best epoch has most of.

        Ours: what always the same answer could reach counts for nothing, in either accuracy. Else a constant, 10 %
        robust of ten classes, would be chosen before a network that is right about clean images and never about
        attacked ones; and of such networks one that is wrong about many, for a few attacked images more.
        """
        if self.run.training.select == "last":
            return (self.epoch,)
        labels = self.validation_images.labels.bincount().double()
        bound = as_good_as_a_constant(float(labels.max() / labels.sum()), len(self.validation_images))
        learnt = float(clean > bound)
        if self.defense.selects_on == "clean":
            return (learnt, clean, robust)
        return (learnt, robust if robust > bound else 0.0, clean)

    def check_loss(self) -> None:
        """Give up if the loss of any step of this epoch was not finite; for the answer a GPU has to be waited for."""
        if not torch.isfinite(self.sums[0]):
            self.give_up(f"the loss is {self.sums[0].item()}")

    def give_up(self, how: str) -> NoReturn:
        """Say that the training has come to nothing; in the place where it is raised, as no change of words counts."""
        raise Hopeless(
            f"training diverged: {how} in {self.run.id.path}, epoch {self.epoch + 1}, by step {self.step_count}, at "
            f"learning rate {self.optimizer.param_groups[0]['lr']:g}, defense {self.run.defense}; the last checkpoint "
            "is kept; lower training.lr"
        )

    def validate(self) -> tuple[float, float]:
        """Clean and robust accuracy, in [0, 1], on the validation images under the PGD of validation."""
        size = at_once(self.run, self.model, self.device)
        return accuracies(self.network, self.validation_images, validation_attack(self.run), size)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, as tensors and plain values."""
        return {
            **{name: getattr(self, name) for name in self.PLAIN},
            **{name: getattr(self, name).state_dict() for name in self.MODULES},
            **({} if self.average is None else {"average": self.average.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        for name in self.PLAIN:
            setattr(self, name, state[name])
        for name in self.MODULES:
            getattr(self, name).load_state_dict(state[name])
        self.compute_in(state["precision"])  # that with which it began, on whatever device
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # in another process: else torch warns
        if self.average is not None:
            self.average.load_state_dict(state["average"])
            models.compute_in(self.precision, cast(models.Normalized, self.average.module))
        self.sums = self.sums.to(self.device)
        self.defense_state = {name: tensor.to(self.device) for name, tensor in self.defense_state.items()}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's weights and buffers, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
