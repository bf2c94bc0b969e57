"""Does a curriculum pay only for the steps it takes? Defenses trained in lockstep with Madry's, on real images.

Each trainer takes its step on its own batch in turn, so that all meet the same machine. The bound for a defense is
(share of sample-steps it takes) x (Madry's attack time) + (Madry's time outside the attack).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sat_core.attacks import PGD, Perturbation
from sat_core.config import Study
from sat_core.training import Trainer, choose_device


@dataclass(frozen=True)
class TimedPGD(PGD):
    """PGD that notes how long it took."""

    seconds: list[float] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Perturbation:
        began = time.perf_counter()
        found = super().__call__(*args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - began)
        return found


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
                start = time.perf_counter()
                next(stream)
                seconds[name] += time.perf_counter() - start
        for name, trainer in trainers.items():
            images = min(len(trainer.train_images), trainer.step_count * trainer.run.training.batch_size)
            share = trainer.sums[1].item() / images / trainer.attack.steps
            attack = sum(trainer.attack.seconds[began[name] :])
            rows.append({"epoch": epoch, "defense": name, "seconds": seconds[name], "attack": attack, "share": share})
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
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("results/bench/curriculum.csv"))
    given = parser.parse_args()
    study, trainers = Study(given.study), {}
    for name in ("madry", *given.defenses):
        trainers[name] = trainer = Trainer(study.run(given.cell.format(name)), choose_device())
        trainer.attack = TimedPGD(**{f.name: getattr(trainer.attack, f.name) for f in fields(PGD)})
    torch.set_num_threads(given.threads)
    epochs = given.epochs or range(trainers["madry"].run.training.epochs)
    found = lockstep(trainers, epochs, given.steps)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    found.to_csv(given.out, index=False)
    total = found.groupby("defense", sort=False).agg({"seconds": "sum", "attack": "sum", "share": "mean"})
    madry = total.loc["madry"]
    bound = total["share"] * madry["attack"] + madry["seconds"] - madry["attack"]
    total = total.assign(**{"x madry": total["seconds"] / madry["seconds"], "x bound": total["seconds"] / bound})
    print(total.to_markdown(floatfmt=".3f"))
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
