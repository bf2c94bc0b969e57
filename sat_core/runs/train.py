"""Training one run in its folder, from its checkpoint if there is one."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from functools import partial

from sat_core.errors import ConfigError, Interrupted
from sat_core.runs import checkpoint, folder
from sat_core.runs.device import device_name
from sat_core.runs.external import bring_in
from sat_core.runs.files import checksum, sole_writer, verify
from sat_core.runs.heartbeat import Heart, beating, hash_of
from sat_core.runs.tensorboard import Board, board
from sat_core.runs.trainer import Trainer
from sat_core.study import Run

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

LONG = 60
"""Seconds of a validation, which no signal interrupts, before which a checkpoint is saved: jobs are warned in time."""


def train(run: Run) -> None:
    """Train ``run`` in its folder, from its checkpoint if there is one, or do nothing if it is complete.

    Writes ``checkpoint.pt`` every ``checkpoint_minutes``, ``history.csv`` after each epoch and, at the end,
    ``model.safetensors`` and last of all ``run.json``. On any of SIGNALS it saves a checkpoint after the
    current step and raises Interrupted. Raises ConfigError for anything the user can mend.
    """
    with sole_writer(run.folder, "train"), signals() as received:
        if folder.finished(run, "train"):
            log.info("%s is complete: nothing to do", run.folder)
            return
        if run.external is not None:
            return bring_in(run, run.external)
        with beating(run, "train") as heart:
            trainer, snapshots = begun(run)
            heart.beat.of = hash_of(run, "train")  # with the images, which are known only now
            folder.withdraw(run, "train")
            folder.write_history(run, trainer.history)
            with contextlib.closing(board(run, trainer)) as shown:
                take_epochs(trainer, snapshots, received, heart, shown)
            write_results(run, trainer, snapshots)


def begun(run: Run) -> tuple[Trainer, dict[str, str]]:
    """The training as its checkpoint has it and the checksums of its snapshots; at its beginning if one is spoilt."""
    trainer = Trainer(run)
    state = checkpoint.load_checkpoint(run.folder / folder.CHECKPOINT, partial(folder.differences, run, "train"))
    if state is None:
        return trainer, {}
    snapshots = state.get("snapshots", {})
    try:
        for epoch in run.training.snapshot_epochs:
            if epoch <= state["epoch"]:
                name = run.training.snapshot(epoch)
                verify(run.folder / name, snapshots.get(name), "training begins anew, as no checkpoint holds it")
    except ConfigError as error:
        log.warning("%s", error)
        return Trainer(run), {}
    trainer.load_state_dict(state)
    return trainer, snapshots


def take_epochs(trainer: Trainer, snapshots: dict[str, str], received: list[int], heart: Heart, shown: Board) -> None:
    """Take the epochs that are left, saving and showing what comes of them; raises Interrupted after a signal."""
    run, saved, validating = trainer.run, time.monotonic(), 0.0
    path, made_of = run.folder / folder.CHECKPOINT, folder.present(run, "train")

    def save() -> None:
        checkpoint.save_checkpoint(path, made_of, trainer.state_dict() | {"snapshots": snapshots})

    while trainer.epoch < run.training.epochs:
        for _ in trainer.steps():
            tell(heart, trainer)
            shown.step()
            if received or time.monotonic() - saved > 60 * run.resources.checkpoint_minutes:
                trainer.check_loss()
                save()
                saved = time.monotonic()
            stop_if(received, trainer)
        if validating > LONG:
            trainer.check_loss()
            save()
        began = time.monotonic()
        trainer.finish_epoch()
        validating = time.monotonic() - began
        folder.write_history(run, trainer.history)
        shown.epoch()
        if trainer.epoch in run.training.snapshot_epochs:
            name = run.training.snapshot(trainer.epoch)
            checkpoint.save_weights(run.folder / name, trainer.network.state_dict())
            snapshots[name] = checksum(run.folder / name)
        if received or trainer.epoch == run.training.epochs:
            save()
        stop_if(received, trainer)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGINT, SIGUSR1 (SLURM's warning) and SIGHUP (a terminal closes) in a list, instead of dying of
    them; not those that this process was started to ignore."""
    received: list[int] = []
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in heard}
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


def tell(heart: Heart, trainer: Trainer) -> None:
    """Where the training is, and how long it will take if the epochs to come are like the last one."""
    epochs, step, steps = trainer.run.training.epochs, trainer.step_count, trainer.steps_an_epoch
    seconds = trainer.history[-1]["seconds"] if trainer.history else trainer.seconds / step * steps
    done = trainer.epoch + step / steps
    doing = f"epoch {trainer.epoch + 1}/{epochs}, step {step}/{steps}"
    heart.tell(doing, done / epochs, seconds * (epochs - done))


def write_results(run: Run, trainer: Trainer, snapshots: dict[str, str]) -> None:
    """Write the selected weights and, last of all, ``run.json``, with the checksums of the snapshots, too."""
    checkpoint.save_weights(run.folder / folder.WEIGHTS, trainer.best["weights"])
    checkpoint.save_weights(run.folder / folder.LAST, trainer.network.state_dict())
    if trainer.best["raw"]:
        checkpoint.save_weights(run.folder / folder.RAW, trainer.best["raw"])
    chosen = trainer.history[trainer.best["epoch"]]
    record = {
        "best_epoch": trainer.best["epoch"],
        "begins": trainer.begins,
        "attacked": trainer.defense.selects_on == "robust",
        "validation": {"clean": chosen["validation_clean"], "robust": chosen["validation_robust"]},
        "seconds": sum(row["seconds"] for row in trainer.history),
        "device": device_name(trainer.device),
        "precision": trainer.precision,
        "peak_memory_mb": trainer.memory,
        "config": run.model_dump(mode="json"),
    }
    others = [folder.LAST, *([folder.RAW] if trainer.best["raw"] else [])]
    record["files"] = {name: checksum(run.folder / name) for name in others} | snapshots
    folder.write_record(run, "train", record)
