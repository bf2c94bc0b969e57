"""The state of one training: epochs of perturb, loss, step; robust validation; the best weights kept."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sat_core import defenses, models
from sat_core.augmentation import AUGMENTATIONS
from sat_core.errors import Hopeless
from sat_core.runs.data import load
from sat_core.runs.device import peak_memory, take_device
from sat_core.runs.network import accuracies, fresh_model, measuring_attack, training_attack
from sat_core.study import Run

log = logging.getLogger(__name__)


class Trainer:
    """The state of one training, from the first epoch to the last."""

    PLAIN = ("epoch", "step_count", "order", "sums", "seconds", "memory", "history", "best", "defense_state")
    MODULES = ("model", "optimizer")

    def __init__(self, run: Run, device: torch.device | None = None) -> None:
        usual = take_device(run)
        self.run, self.device = run, device or usual
        self.train_images, self.validation_images = (part.to(self.device) for part in load(run, "train", "validation"))
        self.attack = training_attack(run)
        self.defense = defenses.build(run.base, run.options, run.training.epochs)
        seed_everything(run.seed)
        self.model = fresh_model(run).to(self.device)
        models.compute_in(run.training.precision, self.model)
        if run.training.compile:
            models.compile_in_place(self.model, run.training.batch_size)
        self.defense_state = self.defense.initial_state(len(self.train_images), self.device)
        config = run.training
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, fused=True
        )
        self.epoch = self.step_count = 0
        self.order: Tensor | None = None
        self.sums = torch.zeros(3, device=self.device)
        self.seconds = 0.0
        self.memory: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"score": (-1.0, -1.0), "epoch": -1, "weights": {}}

    def steps(self) -> Iterator[None]:
        """Take the optimiser steps that are left of this epoch, one by one; between two, all state is in self."""
        if self.order is None:
            self.order = torch.randperm(len(self.train_images))
        size, done = self.run.training.batch_size, self.step_count
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.training.learning_rate(self.epoch)
        batches = tqdm(
            self.train_images.batches(self.order[done * size :], size),
            f"epoch {self.epoch + 1}/{self.run.training.epochs}",
            total=-(-len(self.order) // size),
            initial=done,
            leave=False,
            disable=None,
        )
        began = time.perf_counter()
        for batch in batches:
            self.sums += self.step(*batch)
            self.step_count += 1
            began, before = time.perf_counter(), began
            self.seconds += began - before
            yield

    def finish_epoch(self) -> None:
        """After the last step: validate, keep the weights if they are the best, and add a row to the history."""
        began = time.perf_counter()
        if not all(bool(weights.isfinite().all()) for weights in self.model.parameters()):
            raise Hopeless(self.diverged("a weight is not finite"))
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
        score = (robust, clean) if self.defense.selects_on == "robust" else (clean, robust)
        score = (self.epoch, 0) if self.run.training.select == "last" else score
        if score > tuple(self.best["score"]):
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"score": score, "epoch": self.epoch, "weights": weights}
        self.epoch += 1
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
        loss = self.defense.outer_loss(batch, found)
        if not torch.isfinite(loss):
            raise Hopeless(self.diverged(f"the loss is {loss.item()}"))
        loss.backward()
        self.optimizer.step()
        attacked = self.defense.selects_on == "robust"  # where nothing is attacked, nothing is stopped
        stopped = attacked * (found.steps < self.attack.steps).sum()
        return torch.stack([loss.detach() * len(y), found.steps.sum(), stopped])

    def diverged(self, how: str) -> str:
        """The sentence for a training that has come to nothing."""
        return (
            f"training diverged: {how} in {self.run.id.path}, epoch {self.epoch + 1}, step {self.step_count + 1}, at "
            f"learning rate {self.optimizer.param_groups[0]['lr']:g}, defense {self.run.defense}; the last checkpoint "
            "is kept; lower training.lr"
        )

    def validate(self) -> tuple[float, float]:
        """Clean and robust accuracy, in [0, 1], on the validation images under the training PGD."""
        return accuracies(self.model, self.validation_images, measuring_attack(self.run))

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, as tensors and plain values."""
        return {
            **{name: getattr(self, name) for name in self.PLAIN},
            **{name: getattr(self, name).state_dict() for name in self.MODULES},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        for name in self.PLAIN:
            setattr(self, name, state[name])
        for name in self.MODULES:
            getattr(self, name).load_state_dict(state[name])
        self.sums = self.sums.to(self.device)
        self.defense_state = {name: tensor.to(self.device) for name, tensor in self.defense_state.items()}


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
