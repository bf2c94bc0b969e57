"""Training one run in its folder, from its checkpoint if there is one."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from functools import partial

from sat_core.errors import Interrupted
from sat_core.runs import checkpoint, folder
from sat_core.runs.device import device_name
from sat_core.runs.external import bring_in
from sat_core.runs.files import checksum, sole_writer
from sat_core.runs.trainer import Trainer
from sat_core.study import Run

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def train(run: Run) -> None:
    """Train ``run`` in its folder, from its checkpoint if there is one, or do nothing if it is complete.

    Writes ``checkpoint.pt`` as often as ``resources`` say and, at the end, ``model.safetensors``, ``history.csv`` and
    last of all ``run.json``. On SIGTERM, SIGINT or SIGUSR1 it saves a checkpoint after the current step and raises
    Interrupted. Raises ConfigError for anything the user can mend.
    """
    path, every = run.folder / "checkpoint.pt", run.resources
    with sole_writer(run.folder, "train"), signals() as received:
        if folder.finished(run, "train"):
            log.info("%s is complete: nothing to do", run.folder)
            return
        if run.external is not None:
            return bring_in(run, run.external)
        trainer = Trainer(run)
        made_of = folder.present(run, "train")
        if (state := checkpoint.load_checkpoint(path, partial(folder.differences, run, "train"))) is not None:
            trainer.load_state_dict(state)
        saved = time.monotonic()
        while trainer.epoch < run.training.epochs:
            for _ in trainer.steps():
                if received or time.monotonic() - saved > 60 * every.checkpoint_minutes:
                    checkpoint.save_checkpoint(path, made_of, trainer.state_dict())
                    saved = time.monotonic()
                stop_if(received, trainer)
            trainer.finish_epoch()
            if trainer.epoch in run.training.snapshot_epochs:
                snapshot = run.folder / run.training.snapshot(trainer.epoch)
                checkpoint.save_weights(snapshot, trainer.network.state_dict())
            if received or trainer.epoch % every.checkpoint_epochs == 0 or trainer.epoch == run.training.epochs:
                checkpoint.save_checkpoint(path, made_of, trainer.state_dict())
                saved = time.monotonic()
            stop_if(received, trainer)
        write_results(run, trainer)


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


def write_results(run: Run, trainer: Trainer) -> None:
    """Write the selected weights, the history and, last of all, ``run.json``."""
    checkpoint.save_weights(run.folder / folder.WEIGHTS, trainer.best["weights"])
    checkpoint.save_weights(run.folder / folder.LAST, trainer.network.state_dict())
    if trainer.best["raw"]:
        checkpoint.save_weights(run.folder / folder.RAW, trainer.best["raw"])
    chosen = trainer.history[trainer.best["epoch"]]
    record = {
        "best_epoch": trainer.best["epoch"],
        "validation": {"clean": chosen["validation_clean"], "robust": chosen["validation_robust"]},
        "seconds": sum(row["seconds"] for row in trainer.history),
        "device": device_name(trainer.device),
        "peak_memory_mb": trainer.memory,
        "config": run.model_dump(mode="json"),
    }
    others = [folder.LAST, *([folder.RAW] if trainer.best["raw"] else [])]
    others += [run.training.snapshot(epoch) for epoch in run.training.snapshot_epochs]
    record["files"] = {name: checksum(run.folder / name) for name in others}
    folder.write_training(run, trainer.history, record)
