"""What a training step of every method costs, as a ratio to Madry's in the same round: `python benchmarks/methods.py`.

The methods of config/methods.yaml take steps in turn on the same images, each in its own network as its own training
has left it after ``--epochs`` epochs (so that rules which stop samples meet a network that knows something), once as in
the middle of the training and once as in its last epoch. The median of the rounds' ratios is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from sat_core.runs.trainer import Trainer
from sat_core.study import Study


def main() -> None:
    """Train each method a little, then time steps in lockstep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="config/methods.yaml")
    parser.add_argument("--epochs", type=int, default=6, help="of training before anything is timed")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    runs = {run.defense: run for run in Study(options.study).runs if run.seed == 0}
    trainers = {name: Trainer(run, torch.device("cpu")) for name, run in runs.items()}
    for trainer in trainers.values():
        for _ in range(options.epochs):
            for _ in trainer.steps():
                pass
            trainer.finish_epoch()
    print(f"{'method':<12} {'middle':>7} {'last':>7}   (step time / Madry's, median of {options.rounds} rounds)")
    columns = {}
    for share in (0.5, 1.0):
        ratios: dict[str, list[float]] = {name: [] for name in trainers}
        for _ in range(options.rounds):
            seconds = {}
            for name, trainer in trainers.items():
                trainer.epoch = round(share * (trainer.run.training.epochs - 1))
                index = torch.arange(trainer.run.training.batch_size)
                x, y = trainer.train_images.batch(index)
                began = time.perf_counter()
                trainer.step(index, x, y)
                seconds[name] = time.perf_counter() - began
            for name, found in ratios.items():
                found.append(seconds[name] / seconds["madry"])
        columns[share] = {name: statistics.median(found) for name, found in ratios.items()}
    for name in trainers:
        print(f"{name:<12} {columns[0.5][name]:7.2f} {columns[1.0][name]:7.2f}")


if __name__ == "__main__":
    main()
