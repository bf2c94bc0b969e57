"""Does a curriculum pay only for the steps it takes? Defenses trained in lockstep with Madry's, on real images.

Each trainer takes its step on its own batch in turn, so that all meet the same machine. The bound for a defense is
(share of sample-steps it takes) x (Madry's attack time) + (Madry's time outside the attack). It supposes that half a
batch costs half the time; the floor does not: it is one input gradient for each of the batches that the attack made,
at the size it had, taken right after the attack.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat_core.attacks import PGD, Perturbation, frozen
from sat_core.errors import ConfigError
from sat_core.runs.trainer import Trainer
from sat_core.study import Study


@dataclass(frozen=True)
class TimedPGD(PGD):
    """PGD that notes how long it took, and how long its floor."""

    seconds: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)

    def __call__(self, model: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Perturbation:
        sizes: list[int] = []
        handle = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        with timed(self.seconds):
            found = super().__call__(model, x, *args, **kwargs)
        handle.remove()
        with timed(self.floor), frozen(model, self.batchnorm):
            for size in sizes:
                leaf = x[:size].detach().requires_grad_()
                loss = F.cross_entropy(model(leaf), leaf.new_zeros(size, dtype=torch.int64))
                torch.autograd.grad(loss, leaf)
        return found


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Add the seconds that the block takes to the list."""
    began = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds.append(time.perf_counter() - began)


def warm_up(trainers: dict[str, Trainer], steps: int) -> None:
    """Give all networks the weights that Madry's has after so many steps of ordinary training."""
    network, images = trainers["madry"].model.train(), trainers["madry"].train_images
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        x, y = images.batch(torch.randperm(len(images))[: trainers["madry"].run.training.batch_size])
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    for trainer in trainers.values():
        trainer.model.load_state_dict(network.state_dict())


def lockstep(trainers: dict[str, Trainer], epochs: range, steps: int | None) -> pd.DataFrame:
    """Train all by turns; seconds, attack seconds and share of sample-steps, summed over each epoch."""
    rows = []
    for epoch in epochs:
        for trainer in trainers.values():
            trainer.epoch = epoch
        streams = {name: trainer.steps() for name, trainer in trainers.items()}
        seconds = dict.fromkeys(trainers, 0.0)
        began = {name: len(trainer.attack.seconds) for name, trainer in trainers.items()}
        count = -(-len(trainers["madry"].train_images) // trainers["madry"].run.training.batch_size)
        for _ in islice(range(count), steps):
            for name, stream in streams.items():
                step: list[float] = []
                with timed(step):
                    next(stream)
                seconds[name] += step[0] - trainers[name].attack.floor[-1]
        for name, trainer in trainers.items():
            images = min(len(trainer.train_images), trainer.step_count * trainer.run.training.batch_size)
            share = trainer.sums[1].item() / images / trainer.attack.steps
            attack, floor = (sum(t[began[name] :]) for t in (trainer.attack.seconds, trainer.attack.floor))
            row = {"epoch": epoch, "defense": name, "seconds": seconds[name], "attack": attack, "floor": floor}
            rows.append(row | {"share": share})
            streams[name].close()
            trainer.step_count, trainer.order, trainer.sums = 0, None, torch.zeros_like(trainer.sums)
    return pd.DataFrame(rows)


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="config/demo.yaml")
    parser.add_argument("--cell", default="digits/cnn/{}/eps0.3/seed0", help="a run, {} in the place of the defense")
    parser.add_argument("--defenses", nargs="+", default=["psat", "dynamic", "cat", "hsat"])
    parser.add_argument("--epochs", nargs="+", type=int, help="these alone, counted from 0 (all of them)")
    parser.add_argument("--steps", type=int, help="only so many of each epoch")
    parser.add_argument("--warm-up", type=int, default=0, help="steps of ordinary training before, the same for all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("results/bench/curriculum.csv"))
    given = parser.parse_args()
    study, trainers = Study(given.study), {}
    for name in ("madry", *given.defenses):
        trainers[name] = trainer = Trainer(study.run(given.cell.format(name)))
        trainer.attack = TimedPGD(**{f.name: getattr(trainer.attack, f.name) for f in fields(PGD)})
    torch.set_num_threads(given.threads)
    warm_up(trainers, given.warm_up)
    epochs = given.epochs or range(trainers["madry"].run.training.epochs)
    found = lockstep(trainers, epochs, given.steps)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    found.to_csv(given.out, index=False)
    total = found.groupby("defense", sort=False).agg(
        {"seconds": "sum", "attack": "sum", "floor": "sum", "share": "mean"}
    )
    madry = total.loc["madry"]
    bound = total["share"] * madry["attack"] + madry["seconds"] - madry["attack"]
    total = total.assign(**{"x madry": total["seconds"] / madry["seconds"], "x bound": total["seconds"] / bound})
    total["attack x floor"] = total["attack"] / total["floor"]
    print(total.to_markdown(floatfmt=".3f"))
    print(f"written: {given.out}")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
