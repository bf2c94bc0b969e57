"""TensorBoard's event files beside a run's history, where ``training: {tensorboard: true}`` asks for them.

Watching changes no number: what is looked at is computed already, or takes no random numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from sat_core.runs.network import predict
from sat_core.runs.trainer import Trainer
from sat_core.study import Run

log = logging.getLogger(__name__)

EVENTS = "events.out.tfevents.*"
"""The files' names, which are TensorBoard's."""
IMAGES = 8


class Board:
    """Shows nothing: what a training that is not to be watched has."""

    def step(self) -> None:
        """After each optimiser step."""

    def epoch(self) -> None:
        """After each epoch."""

    def close(self) -> None:
        """At the end, whatever brought it about."""


class EventFiles(Board):
    """Loss and accuracy a step, the history's columns an epoch, and attacked images, over the optimiser steps.

    The accuracy is on the step's x', right after the step, in eval mode; it costs one forward pass. A training that
    goes on from its checkpoint replaces what had been shown of later steps, one from the beginning all.
    """

    def __init__(self, run: Run, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an extra of this package

        self.run, self.trainer, self.ended = run, trainer, False
        if not self.now:
            for file in run.folder.glob(EVENTS):
                file.unlink()
        self.writer = SummaryWriter(run.folder, purge_step=self.now + 1, flush_secs=10)

    @property
    def now(self) -> int:
        """Optimiser steps taken since the beginning."""
        return self.trainer.epoch * self.trainer.steps_an_epoch + self.trainer.step_count

    def step(self) -> None:
        self._shown(self._step)

    def epoch(self) -> None:
        self._shown(self._epoch)

    def close(self) -> None:
        self._shown(self.writer.close)

    def _shown(self, show: Callable[[], None]) -> None:
        """Nothing more once the files cannot be written: no training ends because it cannot be watched."""
        if self.ended:
            return
        try:
            show()
        except OSError as error:
            log.warning("%s: TensorBoard's files end here: %s", self.run.folder, error)
            self.ended = True

    def _step(self) -> None:
        _, x_adv, y, loss = self.trainer.latest
        accuracy = (predict(self.trainer.model, x_adv) == y).double().mean()
        self.writer.add_scalar("step/loss", loss, self.now)
        self.writer.add_scalar("step/accuracy", accuracy, self.now)

    def _epoch(self) -> None:
        for name, value in self.trainer.history[-1].items():
            if name != "epoch" and value is not None:
                self.writer.add_scalar(f"epoch/{name}", value, self.now)
        if self.trainer.latest:  # not where all that was left of the epoch was to end it
            self.writer.add_image("attack", self.attacked(), self.now)
        self.writer.flush()

    def attacked(self) -> Tensor:
        """Images of the last step above what the attack has made of them, above the difference: grey is none."""
        x, x_adv = (images[:IMAGES] for images in self.trainer.latest[:2])
        change = 0.5 + (x_adv - x) / (2 * self.run.epsilon.value)
        from torchvision.utils import make_grid  # takes seconds to import

        return make_grid(torch.cat([x, x_adv, change.clamp(0, 1)]), nrow=len(x), padding=1, pad_value=1.0)


def board(run: Run, trainer: Trainer) -> Board:
    """Where the training is shown, if anywhere."""
    return EventFiles(run, trainer) if run.training.tensorboard else Board()
