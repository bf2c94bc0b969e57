"""Training one run: epochs of perturb, loss, step; robust validation; the best weights kept."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import logging
import os
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sat_core import checkpoint, defenses, models
from sat_core.attacks import PGD, cross_entropy, uniform_start, while_correct
from sat_core.augmentation import AUGMENTATIONS
from sat_core.config import ConfigError, Interrupted, Run
from sat_core.data import Images, load
from sat_core.files import atomic, checksum, read_json, sole_writer, verify, write_json
from sat_core.provenance import environment, training_digest

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
DRIVER = Path("/dev/nvidiactl")
"""There where NVIDIA's driver is."""


def train(run: Run) -> None:
    """Train ``run`` in its folder, from its checkpoint if there is one, or do nothing if it is complete.

    Writes ``checkpoint.pt`` as often as ``resources`` say and, at the end, ``model.safetensors``, ``history.csv`` and
    last of all ``run.json``. On SIGTERM, SIGINT or SIGUSR1 it saves a checkpoint after the current step and raises
    Interrupted. Raises ConfigError for anything the user can mend.
    """
    digest, path, every = training_digest(run), run.folder / "checkpoint.pt", run.resources
    with sole_writer(run.folder, "train"), signals() as received:
        if is_complete(run.folder, digest):
            log.info("%s is complete: nothing to do", run.folder)
            return
        for litter in run.folder.glob(f".{path.name}.*.tmp"):  # of a process that was killed while writing
            litter.unlink()
        trainer = Trainer(run)
        if (state := checkpoint.load_checkpoint(path, digest)) is not None:
            trainer.load_state_dict(state)
        saved = time.monotonic()
        while trainer.epoch < run.training.epochs:
            for _ in trainer.steps():
                if received or time.monotonic() - saved > 60 * every.checkpoint_minutes:
                    checkpoint.save_checkpoint(path, digest, trainer.state_dict())
                    saved = time.monotonic()
                stop_if(received, trainer)
            trainer.finish_epoch()
            if trainer.epoch in run.training.snapshot_epochs:
                snapshot = run.folder / run.training.snapshot(trainer.epoch)
                checkpoint.save_weights(snapshot, trainer.model.state_dict())
            if received or trainer.epoch % every.checkpoint_epochs == 0 or trainer.epoch == run.training.epochs:
                checkpoint.save_checkpoint(path, digest, trainer.state_dict())
                saved = time.monotonic()
            stop_if(received, trainer)
        trainer.write_results(run.folder, digest)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGINT and SIGUSR1 (SLURM's warning) in a list, instead of dying of them."""
    received: list[int] = []
    before = {s: signal.signal(s, lambda number, _: received.append(number)) for s in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_if(received: list[int], trainer: Trainer) -> None:
    """Raise Interrupted if a signal came in."""
    if received:
        name = signal.Signals(received[0]).name
        where = f"epoch {trainer.epoch + 1}, step {trainer.step_count}"
        raise Interrupted(f"{name}: saved in {where}; run the same again to go on")


def is_complete(folder: Path, digest: str) -> bool:
    """Whether the run's results are all there, undamaged, and of this configuration and code."""
    try:
        record = read_json(folder / "run.json")
        for name, expected in record["files"].items():
            verify(folder / name, expected, "it will be written again")
        return record["digest"] == digest
    except ConfigError as error:
        if (folder / "run.json").exists():
            log.warning("%s", error)
        return False


def take_device(run: Run) -> torch.device:
    """Make this process ready to compute for ``run``: the first GPU that it may see, else the run's CPU threads.

    Raises ConfigError where the process was given a GPU by name that torch cannot use, rather than be slow for days.
    """
    torch.set_num_threads(run.resources.threads)
    keep_freed_memory()
    if not run.resources.gpus:
        return torch.device("cpu")
    if torch.cuda.is_available():
        torch.backends.cudnn.deterministic = True
        return torch.device("cuda")
    if os.environ.get("CUDA_VISIBLE_DEVICES") and DRIVER.exists():
        raise ConfigError(
            f"torch {torch.__version__} cannot use the GPU that this job was given: its driver may be too old for CUDA "
            f"{torch.version.cuda} (nvidia-smi shows both); to go on without a GPU, set resources: {{gpus: 0}}"
        )
    return torch.device("cpu")


def keep_freed_memory() -> None:
    """Have the C library keep what tensors free for the next ones: a call costs the CPU less than fresh pages do."""
    with contextlib.suppress(OSError, AttributeError):  # one other than glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)


def training_attack(run: Run) -> PGD:
    """The PGD that the run trains with."""
    epsilon = run.epsilon.value
    return PGD(epsilon, run.attack.relative_step_size * epsilon, run.attack.steps, run.attack.batchnorm)


def measuring_attack(run: Run) -> PGD:
    """The training PGD for a network as it is judged: its batch norms use their running statistics."""
    return replace(training_attack(run), batchnorm="eval")


class Trainer:
    """The state of one training, from the first epoch to the last."""

    PLAIN = ("epoch", "step_count", "order", "sums", "seconds", "memory", "history", "best", "defense_state")
    MODULES = ("model", "optimizer")

    def __init__(self, run: Run, device: torch.device | None = None) -> None:
        usual = take_device(run)
        self.run, self.device = run, device or usual
        self.train_images, self.validation_images = (part.to(self.device) for part in load(run, "train", "validation"))
        self.attack = training_attack(run)
        self.defense = defenses.build(run.base, run.options, run.training)
        checkpoint.seed_everything(run.seed)
        self.model = models.build(run.model, run.data).to(self.device)
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
            raise ConfigError(
                f"training diverged: the loss of {self.run.id.path} is {loss.item()} in epoch {self.epoch + 1}, step "
                f"{self.step_count + 1}, at learning rate {self.optimizer.param_groups[0]['lr']:g}, defense "
                f"{self.run.defense}; the last checkpoint is kept; lower training.lr"
            )
        loss.backward()
        self.optimizer.step()
        attacked = self.defense.selects_on == "robust"  # where nothing is attacked, nothing is stopped
        stopped = attacked * (found.steps < self.attack.steps).sum()
        return torch.stack([loss.detach() * len(y), found.steps.sum(), stopped])

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
                "files": {name: checksum(folder / name) for name in ("model.safetensors", "history.csv")},
                "device": device_name(self.device),
                "peak_memory_mb": self.memory,
                "environment": environment(),
                "config": self.run.model_dump(mode="json"),
            },
        )


def accuracies(model: nn.Module, images: Images, attack: PGD, batch_size: int = 250) -> tuple[float, float]:
    """Clean accuracy and accuracy under ``attack`` on cross entropy, both in [0, 1].

    An image counts as broken as soon as any iterate is misclassified, and is not attacked further.
    """
    correct = robust = 0
    for start in range(0, len(images), batch_size):
        x, y = images.batch(slice(start, start + batch_size))
        clean = predict(model, x) == y
        if not clean.any():
            continue
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
    """For the records: the GPU's name and torch's CUDA, or the CPU with the threads in use."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"CPU, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process has held so far, in MB (10^6 bytes): resident, and on the GPU in tensors."""
    main = {"main": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}  # Linux counts in KiB
    return main | {"gpu": torch.cuda.max_memory_allocated(device) / 1e6} if device.type == "cuda" else main
