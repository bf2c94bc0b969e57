"""Training one run: epochs of perturb, loss, step; robust validation; the best weights kept."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sat_core import checkpoint, defenses, models
from sat_core.attacks import PGD, cross_entropy, uniform_start, while_correct
from sat_core.config import Run
from sat_core.data import Images, load_train
from sat_core.files import atomic, read_json, sole_writer, write_json
from sat_core.provenance import environment, training_digest

log = logging.getLogger(__name__)


def train(run: Run) -> None:
    """Train ``run`` in its folder, from its checkpoint if there is one, or do nothing if it is complete.

    Writes ``checkpoint.pt`` after every epoch and, at the end, ``model.safetensors``, ``history.csv`` and last of all
    ``run.json``. Raises ConfigError for anything the user can mend.
    """
    digest = training_digest(run)
    with sole_writer(run.folder):
        if (run.folder / "run.json").exists() and read_json(run.folder / "run.json")["digest"] == digest:
            log.info("%s is complete: nothing to do", run.folder)
            return
        training = Trainer(run, choose_device())
        state, sentence = checkpoint.load_checkpoint(run.folder / "checkpoint.pt", digest)
        log.info(sentence)
        if state is not None:
            training.load_state_dict(state)
        while training.epoch < run.training.epochs:
            training.run_epoch()
            if training.epoch in run.training.snapshot_epochs:
                weights = training.model.state_dict()
                checkpoint.save_weights(run.folder / run.training.snapshot(training.epoch), weights)
            checkpoint.save_checkpoint(run.folder / "checkpoint.pt", digest, training.state_dict())
        training.write_results(run.folder, digest)


def choose_device() -> torch.device:
    """The first GPU if there is one that this process may see, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def training_attack(run: Run) -> PGD:
    """The PGD that the run trains and validates with."""
    epsilon = run.epsilon.value
    return PGD(epsilon, run.attack.relative_step_size * epsilon, run.attack.steps)


class Trainer:
    """The state of one training, from the first epoch to the last."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self.run, self.device = run, device
        torch.set_num_threads(run.resources.threads)
        train_images, validation_images = load_train(run.data, run.dataset, run.validation.fraction)
        self.train_images, self.validation_images = train_images.to(device), validation_images.to(device)
        self.attack = training_attack(run)
        self.defense = defenses.build(run.base, run.options, run.training)
        checkpoint.seed_everything(run.seed)
        self.model = models.build(run.model, run.data).to(device)
        self.defense_state = self.defense.initial_state(len(train_images), device)
        config = run.training
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, config.milestones, gamma=0.1)
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"score": (-1.0, -1.0), "epoch": -1, "weights": {}}

    def run_epoch(self) -> None:
        """One pass over the training images, then validation; appends a row to the history."""
        began = time.perf_counter()
        lr = self.optimizer.param_groups[0]["lr"]
        order = torch.randperm(len(self.train_images)).to(self.device)
        sums = torch.zeros(3, device=self.device)
        batches = order.split(self.run.training.batch_size)
        for index in tqdm(batches, f"epoch {self.epoch + 1}/{self.run.training.epochs}", leave=False, disable=None):
            sums += self.step(index)
        self.schedule.step()
        clean, robust = self.validate()
        loss, steps, stopped = (sums / len(order)).tolist()
        self.history.append(
            {
                "epoch": self.epoch,
                "lr": lr,
                "loss": loss,
                "validation_clean": clean,
                "validation_robust": robust,
                "lambda": self.defense.curriculum_value(self.epoch),
                "stopped": stopped,
                "steps": steps,
                "seconds": time.perf_counter() - began,
            }
        )
        score = (robust, clean) if self.defense.selects_on == "robust" else (clean, robust)
        if score > tuple(self.best["score"]):
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"score": score, "epoch": self.epoch, "weights": weights}
        self.epoch += 1
        log.info(
            "epoch %d/%d: loss %.4f, validation clean %.1f %%, robust %.1f %%, %.1f PGD steps a sample",
            *(self.epoch, self.run.training.epochs, loss, 100 * clean, 100 * robust, steps),
        )

    def step(self, index: Tensor) -> Tensor:
        """One optimiser step on the training images at ``index``; returns summed loss, PGD steps, stopped samples."""
        x, y = self.train_images.batch(index)
        batch = defenses.Batch(self.model, x, y, index, self.epoch, self.attack, self.defense_state)
        perturbation = self.defense.perturb(batch)
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.defense.loss(batch, perturbation.x)
        loss.backward()
        self.optimizer.step()
        stopped = perturbation.steps < self.attack.steps
        return torch.stack([loss.detach() * len(y), perturbation.steps.sum(), stopped.sum()])

    def validate(self) -> tuple[float, float]:
        """Clean and robust accuracy, in [0, 1], on the validation images under the training PGD."""
        return accuracies(self.model, self.validation_images, self.attack)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, as tensors and plain values."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "defense": self.defense_state,
            "history": self.history,
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.defense_state = {name: tensor.to(self.device) for name, tensor in state["defense"].items()}

    def write_results(self, folder: Path, digest: str) -> None:
        """Write the selected weights and the history, then ``run.json``, whose presence means complete."""
        checkpoint.save_weights(folder / "model.safetensors", self.best["weights"])
        with atomic(folder / "history.csv") as file:
            writer = csv.DictWriter(file, self.history[0])
            writer.writeheader()
            writer.writerows(self.history)
        chosen = self.history[self.best["epoch"]]
        write_json(
            folder / "run.json",
            {
                "run": self.run.id.path,
                "digest": digest,
                "best_epoch": self.best["epoch"],
                "validation": {"clean": chosen["validation_clean"], "robust": chosen["validation_robust"]},
                "seconds": sum(row["seconds"] for row in self.history),
                "device": device_name(self.device),
                "environment": environment(),
                "config": self.run.model_dump(mode="json"),
            },
        )


def accuracies(model: nn.Module, images: Images, attack: PGD, batch_size: int = 1000) -> tuple[float, float]:
    """Clean accuracy and accuracy under ``attack`` on cross entropy, both in [0, 1].

    An image counts as broken as soon as any iterate is misclassified, and is not attacked further.
    """
    correct = robust = 0
    for start in range(0, len(images), batch_size):
        x, y = images.batch(slice(start, start + batch_size))
        clean = predict(model, x) == y
        correct += int(clean.sum())
        x, y = x[clean], y[clean]
        perturbation = attack(
            model, x, cross_entropy(y), start=uniform_start(x, attack.epsilon), keep_going=while_correct(y)
        )
        robust += int((predict(model, perturbation.x) == y).sum())
    return correct / len(images), robust / len(images)


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Predicted classes int64 (N,), in eval mode."""
    return model.eval()(x).argmax(dim=1)


def device_name(device: torch.device) -> str:
    """For the records: the GPU's name, or the CPU with the threads in use."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
